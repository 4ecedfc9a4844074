# shellcheck shell=bash
# Sourced by deploy/quickstart.sh and tests/run.sh: installs what is missing on a bare Debian 12.
# shoal_install PACKAGE...: nothing to do, and no root needed, if all of them are there.

SHOAL_BUILD_PACKAGES=(
  g++ cmake ninja-build ccache mold pkg-config
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler
  libabsl-dev libboost1.81-dev prometheus-cpp-dev nlohmann-json3-dev libcli11-dev libspdlog-dev libssl-dev
)
# clang-format decides the formatting; python runs the clients and references that tests compare with.
SHOAL_TEST_PACKAGES=(libgtest-dev libgmock-dev libbenchmark-dev clang-format-14 python3 python3-venv git procps)

shoal_install() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' ||
      missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
      echo "error: packages are missing (${missing[*]}) and this is neither root nor is there sudo" >&2
      return 1
    }
    as_root=(sudo)
  fi
  echo "installing ${#missing[@]} packages: ${missing[*]}" >&2
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends \
    "${missing[@]}" >/dev/null
}
