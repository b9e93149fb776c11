"""What a site keeps: its folder, its database, its backups."""
