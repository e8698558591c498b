#!/usr/bin/env bash
# Makes an environment for each group of rivals in FOLDER, outside the checkout: benchmarks/setup.sh FOLDER
# Each pins the torch that we were measured with, exactly: then only the numbers of the toolkits differ.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: benchmarks/setup.sh FOLDER (some 3 GB, outside the checkout)" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)

make_environment() { # name, packages...
  local name=$1
  shift
  [ -x "$folder/$name/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder/$name"
  "$folder/$name/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 "$@"
  echo "$name: ready"
}

make_environment loops transformers==5.23.0 accelerate x-transformers==2.31.10
make_environment joeynmt joeynmt==2.3.0 importlib_metadata packaging sentencepiece==0.2.0 # undeclared, or too new otherwise
make_environment eole eole==0.6.4 aiohttp # the last one undeclared
make_environment decoding transformers==5.23.0 ctranslate2==4.8.5 tokenizers
