#include "checkpoint/checks.h"

#include <algorithm>
#include <limits>

#include "tabes/error.h"

namespace tabes::checkpoint {
namespace {

constexpr size_t kShownBytes = 120;

bool is_control(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte < 0x20 || byte == 0x7f;
}

}  // namespace

void fail(std::string_view file, const std::string& what) {
  throw CheckpointError(std::string(file) + ": " + what);
}

std::string quote(std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text.substr(0, kShownBytes)) {
    if (is_control(c)) {
      const auto byte = static_cast<unsigned char>(c);
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    } else {
      out += c;
    }
  }
  return out + (text.size() > kShownBytes ? "\"..." : "\"");
}

bool has_control_characters(std::string_view text) {
  return std::any_of(text.begin(), text.end(), is_control);
}

std::optional<uint64_t> checked_multiply(uint64_t a, uint64_t b) {
  if (b != 0 && a > std::numeric_limits<uint64_t>::max() / b) return std::nullopt;
  return a * b;
}

}  // namespace tabes::checkpoint
