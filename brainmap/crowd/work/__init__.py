"""What people do on a site: accounts, tiles in turn, clicks, progress, certainty, clicks in and out."""
