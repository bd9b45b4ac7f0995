// How much memory this process can still take, and asking before taking it.
#pragma once

#include <cstdint>
#include <new>
#include <optional>
#include <string>

namespace tabes {

// Bytes that can be had before the kernel kills a process or refuses an allocation: the least of
// what the machine has (pages it can reclaim and free swap included; what may still be committed
// where overcommitment is off), what the control groups of this process leave (v1 and v2, every
// level), and what its limits of address space and data leave. Nothing where none of that is
// known, as outside Linux. `root` stands before /proc and /sys.
std::optional<uint64_t> available_memory(const std::string& root = "");

// For work that was not begun.
struct NotEnoughMemory : std::bad_alloc {
  NotEnoughMemory(uint64_t needed_bytes, uint64_t available_bytes)
      : needed(needed_bytes), available(available_bytes) {}
  const char* what() const noexcept override { return "tabes: not enough memory"; }

  uint64_t needed, available;
};

// "1.5 GiB".
std::string size_text(uint64_t bytes);

// Throws NotEnoughMemory if `needed` bytes are more than there are. Little ones are not asked for:
// looking takes longer than they matter.
void require_memory(uint64_t needed);

}  // namespace tabes
