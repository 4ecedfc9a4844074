#include "cli/local_fleet.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "cli/model.h"
#include "cli/process_tree.h"
#include "cli/worker.h"

#include "base/status_macros.h"
#include "coordinator/serve/server.h"
#include "kernels/backend.h"
#include "model/tensors.h"
#include "worker/exchange/local.h"
#include "worker/load/loader.h"
#include "worker/serve/worker_process.h"

namespace shoal {
namespace {

// What a host's other processes, the coordinator and the page tables need.
constexpr int64_t kReservedBytes = int64_t{768} << 20;

int64_t AvailableMemory() {
  std::ifstream meminfo("/proc/meminfo");
  for (std::string word; meminfo >> word;) {
    int64_t kib = 0;
    if (word == "MemAvailable:" && meminfo >> kib) return kib * 1024;
  }
  return 0;
}

// A directory of our own for sockets; removed with everything in it.
class PrivateDirectory {
 public:
  static absl::StatusOr<PrivateDirectory> Make() {
    std::string path = (std::filesystem::temp_directory_path() / "shoal-XXXXXX").string();
    if (mkdtemp(path.data()) == nullptr) {
      return absl::UnavailableError(absl::StrCat("cannot make a directory for sockets: ", path));
    }
    return PrivateDirectory(path);
  }

  PrivateDirectory(PrivateDirectory&& other) noexcept : path_(std::exchange(other.path_, "")) {}

  PrivateDirectory& operator=(PrivateDirectory&&) = delete;

  ~PrivateDirectory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }

 private:
  explicit PrivateDirectory(std::string path) : path_(std::move(path)) {}

  std::string path_;
};

class LocalFleetImpl final : public LocalFleet {
 public:
  LocalFleetImpl(LocalFleetOptions options, PrivateDirectory directory)
      : options_(std::move(options)),
        directory_(std::move(directory)),
        listen_(options_.listen.empty() ? absl::StrCat("unix:", directory_.path(), "/clients")
                                        : options_.listen) {}

  ~LocalFleetImpl() override {
    // Workers first: a coordinator that is gone would only make them dial.
    tree_.reset();
    thread_workers_.clear();
    if (server_ != nullptr) server_->Shutdown(absl::Now() + absl::Seconds(5));
  }

  absl::Status Start();

  std::string address() const override { return AddressOf(listen_, *server_); }

  int http_port() const override { return server_->http_port(); }

  absl::Status WaitReady(absl::Time deadline) override;

  FleetStatus Status() override { return server_->Status(); }

  const ModelConfig& config() const override { return model_.source->config(); }

  bool has_tokenizer() const override { return model_.tokenizer != nullptr; }

  bool KillWorker(int index) override;

  pid_t WorkerPid(int index) const override { return tree_ == nullptr ? 0 : tree_->pid(index); }

  absl::Status Health() const override {
    absl::MutexLock lock(&mutex_);
    return health_;
  }

 private:
  absl::Status ShareMemory();
  absl::Status StartServer();
  absl::Status StartThreads();
  absl::Status StartProcesses();
  absl::StatusOr<WorkerProcessOptions> Worker(int index) const;
  void WorkerEnded(int index, const std::string& how, bool gives_up);
  void AwaitLoss(WorkerId worker);

  std::string WorkerAddress() const { return absl::StrCat("unix:", directory_.path(), "/workers"); }

  const LocalFleetOptions options_;
  const PrivateDirectory directory_;
  const std::string listen_;
  OpenedModel model_;
  std::unique_ptr<DenseSegment> dense_;
  std::unique_ptr<CoordinatorServer> server_;
  std::unique_ptr<ProcessTree> tree_;
  // With the local exchange, instead of tree_.
  std::shared_ptr<LocalHub> hub_;
  std::vector<WorkerProcessOptions> thread_options_;
  std::vector<std::unique_ptr<WorkerProcess>> thread_workers_;
  int64_t memory_per_worker_ = 0;
  mutable absl::Mutex mutex_;
  absl::Status health_ ABSL_GUARDED_BY(mutex_);
};

absl::Status LocalFleetImpl::Start() {
  ASSIGN_OR_RETURN(model_,
                   OpenModel(options_.cluster,
                             options_.with_tokenizer ? WithTokenizer::kIfThere : WithTokenizer::kNo,
                             options_.is_quiet));
  RETURN_IF_ERROR(ShareMemory());
  if (options_.cluster.backend == "cpu") {  // A GPU's worker loads straight into its memory.
    ASSIGN_OR_RETURN(
        dense_,
        DenseSegment::Load(*model_.source, ProgressPrinter("dense weights", options_.is_quiet)));
  }
  RETURN_IF_ERROR(StartServer());
  return options_.cluster.exchange == "local" ? StartThreads() : StartProcesses();
}

// Gives every worker an equal share of what the dense weights leave. A GPU has its own memory, and
// its worker looks at what is free there.
absl::Status LocalFleetImpl::ShareMemory() {
  if (options_.cluster.backend != "cpu") {
    memory_per_worker_ = options_.cluster.memory / options_.cluster.workers;
    return absl::OkStatus();
  }
  const ModelConfig& config = model_.source->config();
  const int64_t available =
      options_.cluster.memory > 0 ? options_.cluster.memory : AvailableMemory() - kReservedBytes;
  const int copies = std::min(options_.cluster.copies, options_.cluster.workers);
  int64_t dense = 0, experts = 0;
  for (const ModelTensor& tensor : ModelTensors(config)) {
    (ClassOf(tensor.kind) == TensorClass::kDense ? dense : experts) += tensor.bytes();
  }
  experts *= copies;
  if (dense + experts > available) {
    const auto gigabytes = [](int64_t bytes) { return static_cast<double>(bytes) / 1e9; };
    return absl::ResourceExhaustedError(
        absl::StrFormat("too little memory: dense weights take %.2f GB, %d of every expert %.2f "
                        "GB, together %.2f GB "
                        "more than the %.2f GB that are available",
                        gigabytes(dense),
                        copies,
                        gigabytes(experts),
                        gigabytes(dense + experts - available),
                        gigabytes(available)));
  }
  memory_per_worker_ = (available - dense) / options_.cluster.workers;
  return absl::OkStatus();
}

absl::Status LocalFleetImpl::StartServer() {
  CoordinatorServerOptions server = ServerOptions(options_.cluster, model_);
  server.listen = listen_;
  server.worker_listen = WorkerAddress();
  SetHttpDoor(options_.http, &server);
  ASSIGN_OR_RETURN(server_, CoordinatorServer::Start(std::move(server)));
  return absl::OkStatus();
}

absl::StatusOr<WorkerProcessOptions> LocalFleetImpl::Worker(int index) const {
  ASSIGN_OR_RETURN(WorkerProcessOptions worker, WorkerOptions(options_.cluster, index));
  worker.coordinators = {WorkerAddress()};
  worker.memory_bytes = memory_per_worker_;
  worker.is_quiet = options_.is_quiet;
  return worker;
}

absl::Status LocalFleetImpl::StartThreads() {
  hub_ = std::make_shared<LocalHub>();
  for (int i = 0; i < options_.cluster.workers; ++i) {
    ASSIGN_OR_RETURN(WorkerProcessOptions worker, Worker(i));
    worker.dense = dense_.get();
    worker.hub = hub_;
    thread_options_.push_back(worker);
    thread_workers_.push_back(WorkerProcess::StartInThread(std::move(worker)));
  }
  return absl::OkStatus();
}

absl::Status LocalFleetImpl::StartProcesses() {
  // Inherited by the children; memfds are close-on-exec otherwise.
  if (dense_ != nullptr) fcntl(dense_->fd(), F_SETFD, 0);
  const std::string program = options_.program.empty()
                                  ? std::filesystem::read_symlink("/proc/self/exe").string()
                                  : options_.program;
  std::vector<ProcessTree::Child> children;
  for (int i = 0; i < options_.cluster.workers; ++i) {
    ASSIGN_OR_RETURN(WorkerProcessOptions worker, Worker(i));
    worker.dense_fd = dense_ != nullptr ? dense_->fd() : -1;
    worker.exit_with_parent = true;
    children.push_back({WorkerCommand(program, options_.cluster, worker)});
  }
  tree_ = std::make_unique<ProcessTree>(std::move(children),
                                        std::vector<int>{kExitUsage, kExitPrecondition},
                                        [this](int index, const std::string& how, bool gives_up) {
                                          WorkerEnded(index, how, gives_up);
                                        });
  return absl::OkStatus();
}

// Before the coordinator has seen its link end, a worker's successor would be a second one with its
// id.
void LocalFleetImpl::AwaitLoss(WorkerId worker) {
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  const auto is_known = [&] {
    const FleetStatus status = server_->Status();
    std::vector<WorkerStatus> workers = status.spare_workers;
    for (const CellStatus& cell : status.cells) {
      workers.insert(workers.end(), cell.workers.begin(), cell.workers.end());
    }
    return std::any_of(
        workers.begin(), workers.end(), [&](const WorkerStatus& w) { return w.worker == worker; });
  };
  while (is_known() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(1));
}

bool LocalFleetImpl::KillWorker(int index) {
  if (tree_ != nullptr) {
    const pid_t pid = tree_->pid(index);
    return pid != 0 && kill(pid, SIGKILL) == 0;
  }
  const auto i = static_cast<size_t>(index);
  thread_workers_[i].reset();
  AwaitLoss(WorkerId{static_cast<uint32_t>(index)});
  thread_workers_[i] = WorkerProcess::StartInThread(thread_options_[i]);
  return true;
}

void LocalFleetImpl::WorkerEnded(int index, const std::string& how, bool gives_up) {
  if (!options_.is_quiet || gives_up) {
    std::fprintf(stderr,
                 "worker %d %s%s\n",
                 index,
                 how.c_str(),
                 gives_up ? "; it is not started again" : "");
  }
  if (!gives_up) return;
  absl::MutexLock lock(&mutex_);
  if (health_.ok()) {
    health_ = absl::FailedPreconditionError(absl::StrCat("worker ", index, " ", how));
  }
}

absl::Status LocalFleetImpl::WaitReady(absl::Time deadline) {
  while (!Status().is_ready) {
    RETURN_IF_ERROR(Health());
    if (absl::Now() > deadline)
      return absl::DeadlineExceededError("the fleet is not ready in time");
    absl::SleepFor(absl::Milliseconds(5));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalFleet>> LocalFleet::Start(const LocalFleetOptions& options) {
  ASSIGN_OR_RETURN(PrivateDirectory directory, PrivateDirectory::Make());
  auto fleet = std::make_unique<LocalFleetImpl>(options, std::move(directory));
  RETURN_IF_ERROR(fleet->Start());
  return std::unique_ptr<LocalFleet>(std::move(fleet));
}

}  // namespace shoal
