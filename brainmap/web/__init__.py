"""What every page served on the web needs: guards before it, an address to listen on."""
