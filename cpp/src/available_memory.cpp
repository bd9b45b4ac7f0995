#include "available_memory.h"

#if defined(__linux__)
#include <sys/resource.h>
#endif

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>

namespace tabes {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();
constexpr uint64_t kLittle = uint64_t{64} << 20;

uint64_t minus(uint64_t a, uint64_t b) {
  return a > b ? a - b : 0;
}

// The number after `name` at the start of a line ("MemFree:   12 kB"), 0 if there is none.
uint64_t field(const std::string& path, std::string_view name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, name.size(), name) != 0) continue;
    uint64_t value = 0;
    std::istringstream(line.substr(name.size())) >> value;
    return value;
  }
  return 0;
}

// The only number in a file; nothing if it holds none ("max") or cannot be read.
std::optional<uint64_t> number(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  if (file >> value) return value;
  return {};
}

// What a control group leaves: its limit less what it holds, file pages that can go aside.
uint64_t left_in_group(const std::string& folder, const char* limit, const char* usage,
                       std::string_view cached) {
  const auto most = number(folder + limit), held = number(folder + usage);
  if (!most || !held) return kUnlimited;
  return minus(*most, minus(*held, field(folder + "/memory.stat", cached)));
}

// The group of this process and those it lies in. In a container the files may be mounted at the
// top while the path is the host's: the top is looked at in any case.
uint64_t left_in_groups(const std::string& root) {
  uint64_t left = kUnlimited;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool v2 = controllers == ",,";
    if (!v2 && controllers.find(",memory,") == std::string::npos) continue;
    const std::string base = root + (v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory");
    std::string path = line.substr(second + 1);
    while (true) {
      if (path == "/") path.clear();
      const std::string at = base + path;
      left =
          std::min(left, v2 ? left_in_group(at, "/memory.max", "/memory.current", "inactive_file ")
                            : left_in_group(at, "/memory.limit_in_bytes", "/memory.usage_in_bytes",
                                            "total_inactive_file "));
      const size_t slash = path.rfind('/');
      if (path.empty() || slash == std::string::npos) break;
      path.resize(slash);
    }
  }
  return left;
}

uint64_t left_of_machine(const std::string& root) {
  const std::string info = root + "/proc/meminfo";
  const uint64_t available = field(info, "MemAvailable:");
  if (available == 0) return kUnlimited;  // unknown
  uint64_t left = (available + field(info, "SwapFree:")) << 10;
  if (number(root + "/proc/sys/vm/overcommit_memory") == 2) {
    left = std::min(left, minus(field(info, "CommitLimit:"), field(info, "Committed_AS:")) << 10);
  }
  return left;
}

uint64_t left_of_limits(const std::string& root) {
  uint64_t left = kUnlimited;
#if defined(__linux__)
  const auto take = [&](auto resource, std::string_view held) {
    rlimit limit{};
    if (::getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
    left = std::min<uint64_t>(left,
                              minus(limit.rlim_cur, field(root + "/proc/self/status", held) << 10));
  };
  take(RLIMIT_AS, "VmSize:");
  take(RLIMIT_DATA, "VmData:");
#endif
  return left;
}

}  // namespace

std::optional<uint64_t> available_memory(const std::string& root) {
  const uint64_t left =
      std::min({left_of_machine(root), left_in_groups(root), left_of_limits(root)});
  if (left == kUnlimited) return {};
  return left;
}

std::string size_text(uint64_t bytes) {
  const bool large = bytes >= uint64_t{1} << 30;
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f %s",
                static_cast<double>(bytes) / static_cast<double>(uint64_t{1} << (large ? 30 : 20)),
                large ? "GiB" : "MiB");
  return text;
}

void require_memory(uint64_t needed) {
  if (needed < kLittle) return;
  const auto available = available_memory();
  if (available && needed > *available) throw NotEnoughMemory(needed, *available);
}

}  // namespace tabes
