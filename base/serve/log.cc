#include "base/serve/log.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "spdlog/pattern_formatter.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace shoal {
namespace {

constexpr size_t kMaxValueBytes = 1024;

spdlog::level::level_enum SpdLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

std::shared_ptr<spdlog::logger> MakeLogger(absl::string_view program, LogLevel lowest) {
  auto logger = std::make_shared<spdlog::logger>(std::string(program),
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_formatter(std::make_unique<spdlog::pattern_formatter>(
      "%Y-%m-%dT%H:%M:%S.%eZ %l %n %v", spdlog::pattern_time_type::utc));
  logger->set_level(SpdLevel(lowest));
  logger->flush_on(spdlog::level::debug);
  return logger;
}

// spdlog's own registry is the one global; it is replaced as a whole.
std::shared_ptr<spdlog::logger>& Current() {
  static std::shared_ptr<spdlog::logger> logger = MakeLogger("shoal", LogLevel::kInfo);
  return logger;
}

bool NeedsQuotes(absl::string_view value) {
  const auto is_plain = [](char c) {
    return c > ' ' && c < 0x7f && c != '"' && c != '=' && c != '\\';
  };
  return value.empty() || !std::all_of(value.begin(), value.end(), is_plain);
}

// Quotation marks and what would end or colour the line; the rest as it is, UTF-8 included.
std::string Quoted(absl::string_view value) {
  std::string out = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(&out, "\\", std::string(1, c));
    } else if ((c >= 0 && c < ' ') || c == 0x7f) {
      absl::StrAppend(&out, "\\x", absl::Hex(c, absl::kZeroPad2));
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
  return out;
}

}  // namespace

void InitLog(absl::string_view program, LogLevel lowest) {
  Current() = MakeLogger(program, lowest);
}

std::string FormatLogLine(absl::string_view what, std::initializer_list<LogField> fields) {
  std::string line(what);
  for (const LogField& field : fields) {
    const absl::string_view value = absl::string_view(field.value).substr(0, kMaxValueBytes);
    absl::StrAppend(&line, " ", field.name, "=");
    absl::StrAppend(&line, NeedsQuotes(value) ? Quoted(value) : std::string(value));
  }
  return line;
}

void Log(LogLevel level, absl::string_view what, std::initializer_list<LogField> fields) {
  spdlog::logger& logger = *Current();
  if (!logger.should_log(SpdLevel(level))) return;
  logger.log(SpdLevel(level), "{}", FormatLogLine(what, fields));
}

}  // namespace shoal
