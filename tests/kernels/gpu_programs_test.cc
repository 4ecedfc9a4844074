// The programs of tests/gpu, run here with a second CPU backend in the GPU's place: what they check
// holds between two that agree, and is noticed between two that do not. So no time on a lent GPU
// goes to the mistakes of its own tests.
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/cpu/backend.h"
#include "tests/gpu/checks.h"
#include "tests/gpu/drive.h"
#include "tests/support/parity_backend.h"

namespace shoal::gpu {
namespace {

class GpuProgramsTest : public testing::Test {
 protected:
  CpuBackend specification_{{.num_threads = 1, .cpus = {}, .isa = CpuIsa::kScalar}};
  CpuBackend device_{{.num_threads = 2}};
};

TEST_F(GpuProgramsTest, ParityHoldsBetweenTwoThatAgree) {
  EXPECT_EQ(CheckDense(&specification_, &device_, /*is_quick=*/true), 0);
  EXPECT_EQ(CheckChoices(&specification_, &device_, /*is_quick=*/true), 0);
  EXPECT_EQ(CheckExperts(&specification_, &device_, /*is_quick=*/true), 0);
}

// A device that makes synthetic weights, of which one in 4,096 may be wrong.
class MakingBackend final : public CpuBackend {
 public:
  explicit MakingBackend(bool is_wrong) : CpuBackend({.num_threads = 1}), is_wrong_(is_wrong) {}

  bool Synthesize(const SynthesizeArgs& args) override {
    for (int64_t i = 0; i < args.count; ++i) {
      uint8_t b = SyntheticByte(args.formula.seed, args.first + i);
      if (is_wrong_ && i == 4'095) b ^= 1;
      switch (args.dtype) {
        case DType::kU8:
          static_cast<uint8_t*>(args.out)[i] = SyntheticU8(args.formula, b);
          break;
        case DType::kBf16:
          static_cast<Bf16*>(args.out)[i] = ToBf16(SyntheticFloat(args.formula, b));
          break;
        default:
          static_cast<float*>(args.out)[i] = SyntheticFloat(args.formula, b);
      }
    }
    return true;
  }

 private:
  const bool is_wrong_;
};

TEST_F(GpuProgramsTest, SyntheticWeightsAreCheckedWhereADeviceMakesThem) {
  MakingBackend right(/*is_wrong=*/false);
  MakingBackend wrong(/*is_wrong=*/true);
  EXPECT_EQ(CheckExperts(&specification_, &right, /*is_quick=*/true), 0);
  // Each of the three places, seventeen tensors: all that reach so far.
  EXPECT_EQ(CheckExperts(&specification_, &wrong, /*is_quick=*/true), 3 * 17);
}

TEST_F(GpuProgramsTest, OneHashWhateverBatchAndChunk) {
  constexpr int kSequences = 9;
  StepModel model(&device_,
                  nullptr,
                  kSmall,
                  kSequences,
                  kDrivePositions,
                  /*max_rows=*/2'048,
                  /*repeats=*/false);
  std::set<uint64_t> hashes;
  for (const int batch : {1, 9}) {
    for (const int32_t chunk : {1, 128}) hashes.insert(Drive(model, kSequences, batch, chunk));
  }
  EXPECT_EQ(hashes.size(), 1u);
}

TEST_F(GpuProgramsTest, AForwardPassAgreesOperationByOperation) {
  ParityBackend both(&specification_, &device_);
  constexpr int kSequences = 3;
  StepModel model(
      &both, nullptr, kSmall, kSequences, kDrivePositions, /*max_rows=*/512, /*repeats=*/false);

  Drive(model, kSequences, /*batch=*/3, /*chunk=*/64);

  EXPECT_GT(both.num_operations(), 400);
  EXPECT_EQ(both.largest_error(), 0.0);
}

// A device whose sums are a little wrong is named by its operation.
TEST_F(GpuProgramsTest, ParityNamesTheOperationThatDisagrees) {
  ParityBackend both(&specification_, &device_);
  DeviceArrays memory(&both);
  std::vector<Bf16> row(64, Bf16{0x3f80});
  Bf16* const x = memory.Put(row);
  Bf16* const out = memory.Put(row);
  const int32_t* const index = memory.Put(std::vector<int32_t>{0});
  row[5] = Bf16{0x4000};
  device_.Write(x, row.data(), 128);  // Behind the decorator's back.

  try {
    both.PickRows({.x = MakeTensor(x, DType::kBf16, 1, 64),
                   .index = {index, 1},
                   .out = MakeTensor(out, DType::kBf16, 1, 64)});
    FAIL() << "a difference went unseen";
  } catch (const DeviceFault& fault) {
    EXPECT_THAT(fault.what(), testing::HasSubstr("operation 1, PickRows"));
  }
}

}  // namespace
}  // namespace shoal::gpu
