// Putting error messages together.
#pragma once

#include <sstream>
#include <string>

#include "tabes/error.h"

namespace tabes {

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  throw InputError(text(parts...));
}

}  // namespace tabes
