// What slow HTTP clients cost the others: the inter-token times of fast clients with and without
// them, and the server's memory for each of them. Not a test: a measurement, run by hand on a quiet
// machine.
//
//   slow_clients MODEL_DIR [NUM_SLOW NUM_FAST SECONDS SLOW_TOKENS]     default 1000 200 15 300
//
// Starts `shoal serve` as a process of its own. Fast clients ask for one stream after the other and
// read what comes. Slow ones ask for one stream with logprobs, which makes half a kilobyte of a
// token, and read a kilobyte a second: enough not to be given up, too little to keep up. Phases:
// fast ones alone; slow ones come, and the fleet finishes their answers; fast ones beside them.

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "base/check.h"

namespace shoal {
namespace {

constexpr absl::Duration kPatience = absl::Minutes(4);

int Connect(int port, int receive_buffer) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(fd >= 0);
  if (receive_buffer > 0) {
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  return fd;
}

void Send(int fd, const std::string& text) {
  CHECK(send(fd, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size()));
}

std::string Request(int tokens, int number, const char* more) {
  const std::string body = absl::StrCat("{\"prompt\":\"Hello ",
                                        number,
                                        "\",\"stream\":true,\"ignore_eos\":true,\"seed\":",
                                        number,
                                        ",\"max_tokens\":",
                                        tokens,
                                        more,
                                        "}");
  return absl::StrCat("POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\n",
                      "content-length: ",
                      body.size(),
                      "\r\n\r\n",
                      body);
}

// Asks for one stream after the other; notes the time from each token to the next.
class FastClient {
 public:
  FastClient(int port, int number) : fd_(Connect(port, 0)), number_(number) {}

  ~FastClient() { close(fd_); }

  FastClient(const FastClient&) = delete;
  FastClient& operator=(const FastClient&) = delete;

  void Ask() {
    is_asking_ = true;
    tail_.clear();
    last_ = absl::InfiniteFuture();
    Send(fd_, Request(64, number_, ""));
  }

  // Something may be there.
  void Read(std::vector<double>* gaps) {
    char buffer[65536];
    const ssize_t size = recv(fd_, buffer, sizeof(buffer), 0);
    if (size <= 0) {
      CHECK(size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK));
      return;
    }
    tail_.append(buffer, static_cast<size_t>(size));
    const absl::Time now = absl::Now();
    if (tail_.find("\"text\":") != std::string::npos) {
      if (last_ != absl::InfiniteFuture()) gaps->push_back(absl::ToDoubleMilliseconds(now - last_));
      last_ = now;
    }
    if (tail_.find("[DONE]") != std::string::npos) is_asking_ = false;
    tail_ = tail_.substr(tail_.size() - std::min<size_t>(tail_.size(), 8));
  }

  int fd() const { return fd_; }

  bool is_asking() const { return is_asking_; }

 private:
  const int fd_;
  const int number_;
  bool is_asking_ = false;
  std::string tail_;
  absl::Time last_;
};

struct Slow {
  int fd = -1;
  bool is_open = true;
};

// A sip from each.
void Sip(std::vector<Slow>* clients) {
  for (Slow& slow : *clients) {
    char buffer[1024];
    if (slow.is_open && recv(slow.fd, buffer, sizeof(buffer), 0) == 0) slow.is_open = false;
  }
}

std::vector<double> RunFast(std::vector<std::unique_ptr<FastClient>>* clients,
                            absl::Duration duration,
                            std::vector<Slow>* slow) {
  std::vector<double> gaps;
  const absl::Time end = absl::Now() + duration;
  absl::Time next_sip = absl::Now();
  for (auto& client : *clients) client->Ask();
  int num_asking = static_cast<int>(clients->size());
  while (num_asking > 0) {
    CHECK(absl::Now() < end + kPatience);
    std::vector<pollfd> fds;
    for (auto& client : *clients) {
      fds.push_back({.fd = client->fd(),
                     .events = static_cast<short>(client->is_asking() ? POLLIN : 0),
                     .revents = 0});
    }
    poll(fds.data(), fds.size(), 100);
    num_asking = 0;
    for (size_t i = 0; i < fds.size(); ++i) {
      FastClient& client = *(*clients)[i];
      if ((fds[i].revents & POLLIN) != 0 && client.is_asking()) client.Read(&gaps);
      if (!client.is_asking() && absl::Now() < end) client.Ask();
      if (client.is_asking()) ++num_asking;
    }
    if (absl::Now() < next_sip) continue;
    Sip(slow);
    next_sip += absl::Seconds(1);
  }
  std::sort(gaps.begin(), gaps.end());
  return gaps;
}

double At(const std::vector<double>& sorted, double quantile) {
  CHECK(!sorted.empty());
  return sorted[static_cast<size_t>(quantile * static_cast<double>(sorted.size() - 1))];
}

int64_t ResidentBytes(pid_t pid) {
  std::ifstream statm(absl::StrCat("/proc/", pid, "/statm"));
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

// A figure of /metrics.
double Figure(int port, const std::string& name) {
  const int fd = Connect(port, 0);
  Send(fd, "GET /metrics HTTP/1.0\r\n\r\n");
  std::string text;
  char buffer[65536];
  pollfd wait{.fd = fd, .events = POLLIN, .revents = 0};
  while (poll(&wait, 1, 10'000) > 0) {
    const ssize_t size = recv(fd, buffer, sizeof(buffer), 0);
    if (size <= 0) break;
    text.append(buffer, static_cast<size_t>(size));
  }
  close(fd);
  const size_t at = text.find("\n" + name + " ");
  double value = -1;
  if (at != std::string::npos) {
    const size_t begin = at + name.size() + 2;
    CHECK(absl::SimpleAtod(text.substr(begin, text.find('\n', begin) - begin), &value));
  }
  return value;
}

// `shoal serve`, until this is destroyed.
class Server {
 public:
  explicit Server(const std::string& model)
      : address_file_(absl::StrCat("/tmp/slow_clients.", getpid())) {
    pid_ = fork();
    if (pid_ == 0) {
      const std::string program = SHOAL_BINARY_DIR "/cli/shoal";
      const int log = open((address_file_ + ".log").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      dup2(log, STDOUT_FILENO);
      dup2(log, STDERR_FILENO);
      execl(program.c_str(),
            "shoal",
            "serve",
            "--model",
            model.c_str(),
            "--workers",
            "1",
            "--listen",
            absl::StrCat("unix:", address_file_, ".grpc").c_str(),
            "--http",
            "127.0.0.1:0",
            "--http-address-file",
            address_file_.c_str(),
            "--kv-tokens",
            "400000",
            static_cast<char*>(nullptr));
      _exit(127);
    }
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    std::string address;
    while (address.empty() || address.back() != '\n') {
      CHECK(absl::Now() < deadline);
      absl::SleepFor(absl::Milliseconds(20));
      std::ifstream file(address_file_);
      address.assign(std::istreambuf_iterator<char>(file), {});
    }
    CHECK(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port_));
  }

  ~Server() {
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
    for (const char* suffix : {"", ".log", ".grpc"}) {
      std::filesystem::remove(address_file_ + suffix);
    }
  }

  pid_t pid() const { return pid_; }

  int port() const { return port_; }

 private:
  const std::string address_file_;
  pid_t pid_;
  int port_ = 0;
};

int Main(const std::string& model, int num_slow, int num_fast, int seconds, int slow_tokens) {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  const Server server(model);
  std::vector<std::unique_ptr<FastClient>> fast;
  for (int i = 0; i < num_fast; ++i) {
    fast.push_back(std::make_unique<FastClient>(server.port(), i));
  }
  std::vector<Slow> slow;

  RunFast(&fast, absl::Seconds(3), &slow);  // Warms up
  const std::vector<double> alone = RunFast(&fast, absl::Seconds(seconds), &slow);
  const int64_t before = ResidentBytes(server.pid());
  for (int i = 0; i < num_slow; ++i) {
    slow.push_back({.fd = Connect(server.port(), 4096)});
    Send(slow.back().fd, Request(slow_tokens, i, ",\"logprobs\":5"));
  }
  const absl::Time deadline = absl::Now() + kPatience;
  while (Figure(server.port(), "shoal_sequences_running") +
             Figure(server.port(), "shoal_sequences_waiting") >
         0) {
    CHECK(absl::Now() < deadline);
    Sip(&slow);
    absl::SleepFor(absl::Seconds(1));
  }
  const int64_t after = ResidentBytes(server.pid());
  const double parked = Figure(server.port(), "shoal_slow_readers_parked_total");
  const std::vector<double> beside = RunFast(&fast, absl::Seconds(seconds), &slow);
  const int64_t last = ResidentBytes(server.pid());
  const auto num_open =
      std::count_if(slow.begin(), slow.end(), [](const Slow& client) { return client.is_open; });

  const auto kib = [&](int64_t bytes) {
    return static_cast<double>(bytes) / 1024.0 / std::max(1, num_slow);
  };
  std::printf("fast clients alone: %d, %zu gaps, inter-token p50 %.2f ms, p99 %.2f ms\n",
              num_fast,
              alone.size(),
              At(alone, 0.5),
              At(alone, 0.99));
  std::printf(
      "beside %d slow ones (%ld still open, parked %.0f times): %zu gaps, p50 %.2f ms, "
      "p99 %.2f ms: %.2fx\n",
      num_slow,
      static_cast<long>(num_open),
      parked,
      beside.size(),
      At(beside, 0.5),
      At(beside, 0.99),
      At(beside, 0.99) / At(alone, 0.99));
  std::printf("memory per slow client: %.1f KiB after their answers, %.1f KiB at the end\n",
              kib(after - before),
              kib(last - before));
  for (const Slow& client : slow) close(client.fd);
  return 0;
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  const auto number = [&](int index, int otherwise) {
    int value = otherwise;
    if (argc > index && !absl::SimpleAtoi(argv[index], &value)) value = otherwise;
    return value;
  };
  if (argc < 2) {
    std::fprintf(stderr, "usage: slow_clients MODEL_DIR [NUM_SLOW NUM_FAST SECONDS SLOW_TOKENS]\n");
    return 2;
  }
  return shoal::Main(argv[1], number(2, 1000), number(3, 200), number(4, 15), number(5, 300));
}
