// One line for each thing worth telling an operator: time, level, what happened, then its facts as
// name=value. Goes to standard error. The only place that calls spdlog. Prompts, answers and keys
// never appear in a line; ids, counts and durations do.
//
//   2026-11-24T00:12:33.412Z info coordinator request.finished id=req-9f tokens=128 reason=stop
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace shoal {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError };

// One fact of a line. Texts are quoted where they need it, and cut after 1,024 bytes.
struct LogField {
  LogField(absl::string_view field_name, absl::string_view text) : name(field_name), value(text) {}

  LogField(absl::string_view field_name, const std::string& text)
      : LogField(field_name, absl::string_view(text)) {}

  LogField(absl::string_view field_name, const char* text)
      : LogField(field_name, absl::string_view(text)) {}

  LogField(absl::string_view field_name, bool truth)
      : LogField(field_name, truth ? "true" : "false") {}

  LogField(absl::string_view field_name, absl::Duration duration)
      : name(field_name), value(absl::FormatDuration(duration)) {}

  template <typename T>

  requires(std::integral<T> || std::floating_point<T>)
      LogField(absl::string_view field_name, T number)
      : name(field_name), value(absl::StrCat(number)) {}

  absl::string_view name;
  std::string value;
};

// `program` is the third word of every line. Lines below `lowest` are dropped. Call it before the
// first thread; without it the program is called "shoal" and the lowest level is kInfo.
void InitLog(absl::string_view program, LogLevel lowest);

// Thread-safe; a line is written whole.
void Log(LogLevel level, absl::string_view what, std::initializer_list<LogField> fields);

// What stands after the level; for tests.
std::string FormatLogLine(absl::string_view what, std::initializer_list<LogField> fields);

}  // namespace shoal
