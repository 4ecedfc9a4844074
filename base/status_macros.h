// The two flow macros.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define SHOAL_CONCAT_INNER(a, b) a##b
#define SHOAL_CONCAT(a, b) SHOAL_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expression)                                                  \
  do {                                                                               \
    if (::absl::Status macro_status = (expression); !macro_status.ok()) [[unlikely]] \
      return macro_status;                                                           \
  } while (false)

#define ASSIGN_OR_RETURN(declaration, expression) \
  SHOAL_ASSIGN_OR_RETURN_INNER(SHOAL_CONCAT(status_or_, __LINE__), declaration, expression)

#define SHOAL_ASSIGN_OR_RETURN_INNER(result, declaration, expression) \
  auto result = (expression);                                         \
  if (!result.ok()) [[unlikely]]                                      \
    return std::move(result).status();                                \
  declaration = *std::move(result)
