// The exchange of a GPU fleet: NCCL's grouped sends and receives. A communicator for each epoch,
// made from a unique id that rank 0 draws and the coordinator hands on; aborted, never destroyed.
//
// Two ways to exchange rows. Dispatch and Combine take a route that the host planned, as every
// Exchange does: one wait of the host per dispatch, for the numbers of rows. LaunchSlots moves
// slots of fixed size that a kernel filled: no wait, so a step of it can be captured in a graph.
//
// Messages of other sizes than the peer expects are NCCL's undoing (it hangs or fails), so whatever
// decides a size is the same on all ranks: the membership, the limits, BeginStep's argument, or the
// header that came one round before.
//
// Buffers of the slots are their user's (worker/activations.h); those below are of the other way.
// Next: worker/exchange/nccl_comm.h
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "worker/exchange/arrivals.h"
#include "worker/exchange/device_stream.h"
#include "worker/exchange/exchange.h"
#include "worker/exchange/exchange_shape.h"
#include "worker/exchange/nccl_api.h"
#include "worker/exchange/nccl_comm.h"

namespace shoal {

class CudaBackend;

// Memory of a device, or of the host for copies from and to it; freed with the object.
class DeviceBuffer {
 public:
  enum class Place { kDevice, kHost };

  DeviceBuffer(DeviceStream* stream, Place place, size_t bytes)
      : stream_(stream),
        place_(place),
        bytes_(bytes),
        data_(static_cast<std::byte*>(place == Place::kHost ? stream->AllocateHost(bytes)
                                                            : stream->Allocate(bytes))) {}

  ~DeviceBuffer() {
    if (data_ == nullptr) return;
    if (place_ == Place::kHost) {
      stream_->FreeHost(data_, bytes_);
    } else {
      stream_->Free(data_, bytes_);
    }
  }

  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  // Null: there was not enough.
  std::byte* data() const { return data_; }

  size_t bytes() const { return bytes_; }

 private:
  DeviceStream* const stream_;
  const Place place_;
  const size_t bytes_;
  std::byte* const data_;
};

// Threads as in exchange.h.
class NcclExchange final : public Exchange, public SlotExchange {
 public:
  NcclExchange(const Membership& membership, const ExchangeLimits& limits, NcclCommParts parts);
  ~NcclExchange() override;

  // Collective: once. Joins the others, then exchanges one message with each of them: NCCL connects
  // two ranks when they first talk. kResourceExhausted: no device memory.
  absl::Status Open(const NcclUniqueId& id, absl::Time deadline);

  SlotExchange* slots() override { return this; }

  ExchangeShape BeginStep(int32_t most_rows) override;
  absl::StatusOr<Arrivals> Dispatch(const Route& route,
                                    const TensorView& outgoing,
                                    absl::Time deadline) override;
  absl::Status Combine(const Route& route,
                       const Arrivals& arrivals,
                       const TensorView& expert_out,
                       const TensorView& returned,
                       absl::Time deadline) override;
  void Abort(absl::Status cause) override;
  absl::Status Health() const override;
  std::vector<Rank> suspects() const override;
  absl::Duration TakeWaitTime() override;

  SlotGuard* guard() override { return reinterpret_cast<SlotGuard*>(guard_.data()); }

  absl::Status LaunchSlots(const void* send,
                           void* receive,
                           int64_t slot_bytes,
                           absl::Time deadline) override;
  absl::Status Settle(absl::Time deadline) override;

  // Of Open: when all ranks had met.
  absl::Time connected() const { return connected_; }

 private:
  size_t num_ranks() const { return membership_.members.size(); }

  size_t self() const { return static_cast<size_t>(membership_.self.value); }

  void FillHeaders(const Route& route);
  // To and from all others; what came is in headers_in_ then.
  absl::Status ExchangeHeaders(const std::string& what, absl::Time deadline);
  absl::Status ReadHeaders(Arrivals* arrivals);
  absl::Status MoveRows(const Route& route, const TensorView& outgoing, absl::Time deadline);
  absl::Status Launch(const std::vector<NcclTransfer>& transfers,
                      const std::string& what,
                      absl::Time deadline);
  // Before the backend reads what the stream wrote.
  absl::Status HandToBackend(const std::string& what, absl::Time deadline);
  absl::Status Await(const std::string& what, absl::Time deadline);
  absl::Status Fail(const absl::Status& status);
  absl::Status Annotate(const absl::Status& status) const;

  const Membership membership_;
  const ExchangeLimits limits_;
  DeviceStream& stream_;
  const size_t row_bytes_;
  // Freed after the communicator, whose kernels may write until they have seen the abort.
  const DeviceBuffer out_;           // [ranks, headers of the largest step]
  const DeviceBuffer in_;            // Likewise
  const DeviceBuffer received_;      // [ranks * max_rows, hidden] bf16
  const DeviceBuffer home_;          // [max_rows * k, hidden] bf16, results in the order of pairs
  const DeviceBuffer headers_out_;   // As out_, of the host
  const DeviceBuffer headers_in_;    // As in_, of the host
  const DeviceBuffer guard_;         // SlotGuard
  const DeviceBuffer guard_read_;    // Likewise, of the host
  std::vector<int32_t> home_index_;  // [rows * k] -> row of home_
  NcclComm comm_;

  // The calling thread's.
  int32_t most_rows_ = 0;    // Of any rank in this step
  size_t header_bytes_ = 0;  // Of one rank's headers in this step
  uint64_t next_seq_ = 0;
  std::vector<uint32_t> rows_from_;  // [ranks] of the last dispatch
  ArrivalsBuilder builder_;
  absl::Duration waited_;
  absl::Time connected_;
};

struct NcclFactoryOptions {
  NcclApi api;
  std::unique_ptr<DeviceStream> stream;
  std::string host_id;
  // The process cannot go on: a call into NCCL does not come back, or the device has failed. Does
  // not return in a worker.
  std::function<void(const std::string& why)> die;
  absl::Duration abort_patience = absl::Seconds(10);  // As in NcclCommParts
};

std::unique_ptr<ExchangeFactory> MakeNcclExchangeFactory(NcclFactoryOptions options);

// Exit code of a worker that ended because a call into NCCL did not come back.
inline constexpr int kNcclHungExitCode = 7;

// From the command line: `library` as for LoadNccl; `gpu` is what the worker computes on and
// outlives the factory, null for the CPU. kFailedPrecondition: that library and that device do not
// go together.
absl::StatusOr<std::unique_ptr<ExchangeFactory>> OpenNcclExchangeFactory(const std::string& library,
                                                                         CudaBackend* gpu);

}  // namespace shoal
