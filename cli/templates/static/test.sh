#!/bin/sh
# Every file that a page names is there.
cd "$(dirname "$0")/public" || exit 1
status=0
for page in *.html; do
  for name in $(grep -o -E '(href|src)="[^"#:]+"' "$page" | cut -d'"' -f2); do
    if [ ! -e "./$name" ]; then
      echo "$page names $name, which is not there"
      status=1
    fi
  done
done
[ "$status" = 0 ] && echo ok
exit "$status"
