#!/bin/sh
# Check that the packet core builds for the other machines that it is meant for, where rustup has their target.
set -eu
installed=$(rustup target list --installed 2>/dev/null || true)
for target in i686-unknown-linux-gnu armv7-unknown-linux-gnueabihf aarch64-unknown-linux-gnu; do
    case "$installed" in
    *"$target"*) cargo check --package t2s-core --locked --quiet --target "$target" ;;
    *) echo "t2s-core is not checked for $target: rustup target add $target" ;;
    esac
done
