#!/bin/sh
# Makes the site at the first start, then serves it; settings come from the environment.
set -eu
[ -f /site/data/crowd.toml ] || brainmap crowd init /site/data
exec brainmap crowd serve /site/data --host 0.0.0.0 --port 8000
