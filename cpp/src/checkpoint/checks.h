// What every part of the checkpoint reader needs: one way to fail, one way to show text that came
// from a file, one way to multiply numbers that came from a file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tabes::checkpoint {

// Throws CheckpointError("FILE: WHAT"), both made printable. Every rejection goes through here, so
// none can forget to name its file.
[[noreturn]] void fail(std::string_view file, const std::string& what);

// `text` as valid UTF-8 without control characters: bytes that are neither are written "\xNN". A
// hostile name must not reach a terminal as an escape sequence, and Python takes no other text.
std::string printable(std::string_view text);

// The same in double quotes, and long text cut so that it does not fill the log.
std::string quote(std::string_view text);

// Whether `text` holds a byte below 0x20 or DEL.
bool has_control_characters(std::string_view text);

// a * b, or nothing if it does not fit. The only place where sizes from a file are multiplied.
std::optional<uint64_t> checked_multiply(uint64_t a, uint64_t b);

}  // namespace tabes::checkpoint
