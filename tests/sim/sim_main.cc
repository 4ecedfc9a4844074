// Endless seeds: sim_main [--seed FIRST] [--runs N] (0: until a violation is found) [--trace 1].
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/sim/simulator.h"

namespace {

uint64_t Flag(int argc, char** argv, const char* name, uint64_t otherwise) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::strcmp(argv[i], name) == 0) return std::strtoull(argv[i + 1], nullptr, 10);
  }
  return otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t first = Flag(argc, argv, "--seed", 1);
  const uint64_t runs = Flag(argc, argv, "--runs", 0);
  for (uint64_t seed = first; runs == 0 || seed < first + runs; ++seed) {
    std::fprintf(stderr, "\rseed %" PRIu64 " ", seed);
    const shoal::sim::RunReport report =
        shoal::sim::RunSeed({.seed = seed, .has_trace = Flag(argc, argv, "--trace", 0) != 0});
    if (report.violation.has_value()) {
      std::printf("seed %" PRIu64 ": %s\n", seed, report.violation->c_str());
      return 1;
    }
  }
  std::fprintf(stderr, "\n");
  return 0;
}
