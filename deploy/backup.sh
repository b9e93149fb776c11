#!/bin/sh
# Run daily (cron, systemd timer): a backup of SITE into FOLDER, the newest 14 kept. Works while the site serves.
#   deploy/backup.sh /srv/crowd /mnt/backups
set -eu
site=$1 folder=$2 keep=${3:-14}
mkdir -p "$folder"
brainmap crowd backup "$site" "$folder/$(date -u +%Y%m%dT%H%M%SZ).backup"
ls -1 "$folder"/*.backup | sort -r | tail -n +"$((keep + 1))" | while IFS= read -r old; do rm -- "$old"; done
