// Our declarations of NCCL's interface against the real header: built only where there is one.
#include "worker/exchange/nccl_abi.h"

#include <cstddef>
#include <type_traits>

#include "gtest/gtest.h"
#include "nccl.h"

#include "worker/exchange/nccl_api.h"

namespace shoal {
namespace {

static_assert(kNcclVersion <= NCCL_VERSION_CODE && NcclMajor(kNcclVersion) == NCCL_MAJOR);
static_assert(sizeof(NcclUniqueId) == sizeof(ncclUniqueId) &&
              sizeof(NcclUniqueId) == NCCL_UNIQUE_ID_BYTES);
static_assert(sizeof(NcclResult) == sizeof(ncclResult_t));
static_assert(static_cast<int>(NcclResult::kSuccess) == ncclSuccess);
static_assert(static_cast<int>(NcclResult::kUnhandledCudaError) == ncclUnhandledCudaError);
static_assert(static_cast<int>(NcclResult::kSystemError) == ncclSystemError);
static_assert(static_cast<int>(NcclResult::kInternalError) == ncclInternalError);
static_assert(static_cast<int>(NcclResult::kInvalidArgument) == ncclInvalidArgument);
static_assert(static_cast<int>(NcclResult::kInvalidUsage) == ncclInvalidUsage);
static_assert(static_cast<int>(NcclResult::kRemoteError) == ncclRemoteError);
static_assert(static_cast<int>(NcclResult::kInProgress) == ncclInProgress);
static_assert(kNcclUint8 == ncclUint8);
static_assert(kNcclUndefined == NCCL_CONFIG_UNDEF_INT);

// A later header may have more fields at the end.
static_assert(sizeof(NcclConfig) <= sizeof(ncclConfig_t));
static_assert(offsetof(NcclConfig, magic) == offsetof(ncclConfig_t, magic));
static_assert(offsetof(NcclConfig, version) == offsetof(ncclConfig_t, version));
static_assert(offsetof(NcclConfig, blocking) == offsetof(ncclConfig_t, blocking));
static_assert(offsetof(NcclConfig, max_ctas) == offsetof(ncclConfig_t, maxCTAs));
static_assert(offsetof(NcclConfig, net_name) == offsetof(ncclConfig_t, netName));
static_assert(offsetof(NcclConfig, nvlink_centric_sched) ==
              offsetof(ncclConfig_t, nvlinkCentricSched));

TEST(NcclAbiTest, TheConfigStartsAsTheHeadersDoes) {
  const NcclConfig ours;
  const ncclConfig_t theirs = NCCL_CONFIG_INITIALIZER;
  EXPECT_EQ(ours.magic, theirs.magic);
  EXPECT_EQ(ours.size, sizeof(NcclConfig));
  EXPECT_EQ(ours.blocking, theirs.blocking);
}

// Parameters, one by one, as the table declares them.
template <typename Ours, typename Theirs>
constexpr bool kSameShape = false;

template <typename A, typename... As, typename B, typename... Bs>
constexpr bool kSameShape<A (*)(As...), B (*)(Bs...)> = sizeof...(As) == sizeof...(Bs) &&
                                                        ((sizeof(As) == sizeof(Bs)) && ...);

static_assert(kSameShape<decltype(NcclApi::get_version), decltype(&ncclGetVersion)>);
static_assert(kSameShape<decltype(NcclApi::get_unique_id), decltype(&ncclGetUniqueId)>);
static_assert(
    kSameShape<decltype(NcclApi::comm_init_rank_config), decltype(&ncclCommInitRankConfig)>);
static_assert(
    kSameShape<decltype(NcclApi::comm_get_async_error), decltype(&ncclCommGetAsyncError)>);
static_assert(kSameShape<decltype(NcclApi::comm_abort), decltype(&ncclCommAbort)>);
static_assert(kSameShape<decltype(NcclApi::send), decltype(&ncclSend)>);
static_assert(kSameShape<decltype(NcclApi::recv), decltype(&ncclRecv)>);

}  // namespace
}  // namespace shoal
