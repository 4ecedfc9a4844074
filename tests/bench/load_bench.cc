// The host's half of loading onto a GPU: reading an expert's bytes of a checkpoint and handing them
// over, on a device that takes them for nothing. The ceiling, in the same run, is as many threads
// that do nothing but read the same files. Files are in the page cache (SHOAL_BENCH_COLD=1 drops
// them first, if the kernel lets us): 4 layers of gpt-oss-20b, 1.7 GB of experts.
//
//   Read/T         T threads, 8 MiB at a time, nothing else
//   Experts/R/1    ExpertSet with R readers; copies leave from pinned memory
//   Experts/R/0    the same, each copied into a pinned half first, as Device::Write() does
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "benchmark/benchmark.h"
#include "cli/synthetic_checkpoint.h"

#include "base/check.h"
#include "tests/worker/load_fake_backend.h"
#include "worker/load/loader.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPartBytes = size_t{8} << 20;

ModelConfig FourLayers() {
  ModelConfig config = ModelConfig::GptOss20b();
  config.num_layers = 4;
  config.is_window_layer.resize(4);
  config.vocab = 128;
  config.eos_token_ids = ModelConfig::Tiny().eos_token_ids;
  return config;
}

// The checkpoint, made once and removed at the end.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("load_bench." + std::to_string(getpid()))) {
    const absl::Status status =
        WriteSyntheticCheckpoint({.dir = path_, .config = FourLayers()}, {});
    if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
    CHECK(status.ok());
  }

  ~Folder() { fs::remove_all(path_); }

  std::string path() const { return path_; }

  std::vector<std::string> files() const {
    std::vector<std::string> files;
    for (const auto& entry : fs::directory_iterator(path_)) {
      if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
    }
    return files;
  }

  void Chill() const {
    if (std::getenv("SHOAL_BENCH_COLD") == nullptr) return;
    for (const std::string& file : files()) {
      const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
      fdatasync(fd);
      posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
      close(fd);
    }
  }

 private:
  const fs::path path_;
};

const Folder& TheFolder() {
  static const Folder folder;
  return folder;
}

// A device whose copies from pinned memory are free,
// and one from elsewhere costs the memcpy into the pinned halves.
class NullDevice final : public LoadFakeBackend {
 public:
  NullDevice(int num_readers, bool pins)
      : num_readers_(num_readers), pins_(pins), halves_(2 * kPartBytes) {}

  int num_readers() const override { return num_readers_; }

  void Write(void*, const void* host, size_t bytes) override { Stage(host, bytes); }

  void Repack(const RepackArgs& args) override {
    Stage(args.codes, static_cast<size_t>(CodeBytes(args.format, args.out, args.in)));
    Stage(args.scales, static_cast<size_t>(args.out * args.in / kMxBlock));
  }

 private:
  void Stage(const void* host, size_t bytes) {
    if (pins_) return;
    const auto* from = static_cast<const std::byte*>(host);
    while (bytes > 0) {
      const size_t part = std::min(bytes, kPartBytes);
      std::memcpy(halves_.data() + static_cast<size_t>(half_) * kPartBytes, from, part);
      half_ = 1 - half_;
      from += part;
      bytes -= part;
    }
  }

  const int num_readers_;
  const bool pins_;
  std::vector<std::byte> halves_;
  int half_ = 0;
};

void Read(benchmark::State& state) {
  const std::vector<std::string> files = TheFolder().files();
  int64_t read = 0;
  for (auto _ : state) {
    state.PauseTiming();
    TheFolder().Chill();
    state.ResumeTiming();
    for (const std::string& file : files) {
      const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
      const int64_t parts = static_cast<int64_t>(fs::file_size(file) / kPartBytes);
      std::atomic<int64_t> next = 0;
      std::vector<std::thread> threads;
      for (int64_t t = 0; t < state.range(0); ++t) {
        threads.emplace_back([&] {
          std::vector<std::byte> part(kPartBytes);
          for (int64_t i = next++; i < parts; i = next++) {
            CHECK_GT(pread(fd, part.data(), part.size(), i * static_cast<int64_t>(kPartBytes)), 0);
          }
        });
      }
      for (std::thread& thread : threads) thread.join();
      close(fd);
      read += parts * static_cast<int64_t>(kPartBytes);
    }
  }
  state.SetBytesProcessed(read);
}

void Experts(benchmark::State& state) {
  const auto source = OpenCheckpoint(TheFolder().path());
  CHECK(source.ok());
  std::vector<ExpertId> all;
  for (int e = 0; e < (*source)->config().num_experts; ++e) all.push_back(ExpertId{e});
  int64_t read = 0;
  for (auto _ : state) {
    state.PauseTiming();
    TheFolder().Chill();
    state.ResumeTiming();
    NullDevice device(static_cast<int>(state.range(0)), state.range(1) != 0);
    const auto set = ExpertSet::Create(source->get(), &device);
    int64_t total = 0;
    CHECK(set->Hold(all,
                    [&](int64_t, int64_t bytes) {
                      total = bytes;
                      return true;
                    })
              .ok());
    read += total;
  }
  state.SetBytesProcessed(read);
}

BENCHMARK(Read)->Arg(1)->Arg(2)->Arg(4)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(Experts)->ArgsProduct({{1, 2, 4}, {0, 1}})->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace shoal

BENCHMARK_MAIN();
