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

// The bytes of the character that `text`, which is not empty, starts with: 0 if that is a control
// character or no valid UTF-8 (too long a form, a surrogate, beyond U+10FFFF).
size_t character(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned first = byte(0);
  if (first < 0x80) return is_control(text[0]) ? 0 : 1;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const unsigned second = byte(1);
  if (first == 0xc2 && second < 0xa0) return 0;  // U+0080 to U+009F are control characters too
  if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second >= 0xa0)) return 0;
  if ((first == 0xf0 && second < 0x90) || (first == 0xf4 && second >= 0x90)) return 0;
  return length;
}

}  // namespace

void fail(std::string_view file, const std::string& what) {
  throw CheckpointError(printable(file) + ": " + printable(what));
}

std::string printable(std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t length = character(text);
    if (length > 0) {
      out += text.substr(0, length);
      text.remove_prefix(length);
      continue;
    }
    const auto byte = static_cast<unsigned char>(text.front());
    out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    text.remove_prefix(1);
  }
  return out;
}

std::string quote(std::string_view text) {
  size_t end = std::min(text.size(), kShownBytes);
  // Not within a character.
  for (int i = 0; i < 3 && end > 0 && end < text.size() && (text[end] & 0xc0) == 0x80; ++i) --end;
  return "\"" + printable(text.substr(0, end)) + (end < text.size() ? "\"..." : "\"");
}

bool has_control_characters(std::string_view text) {
  return std::any_of(text.begin(), text.end(), is_control);
}

std::optional<uint64_t> checked_multiply(uint64_t a, uint64_t b) {
  if (b != 0 && a > std::numeric_limits<uint64_t>::max() / b) return std::nullopt;
  return a * b;
}

}  // namespace tabes::checkpoint
