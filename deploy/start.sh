#!/bin/sh
# Makes the site at the first start, then serves it; settings come from the environment.
set -eu
site=${SITE:-/site/data}
[ -f "$site/crowd.toml" ] || brainmap crowd init "$site"
exec brainmap crowd serve "$site" --host 0.0.0.0 --port "${PORT:-8000}"
