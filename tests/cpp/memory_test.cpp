// What memory there is, read from files as the kernel writes them.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "available_memory.h"
#include "out_of_memory.h"

namespace tabes {
namespace {

class AvailableMemory : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "tabes_memory_" + std::to_string(::getpid());
    write("/proc/meminfo",
          "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n"
          "SwapFree: 1000 kB\nCommitLimit: 3000 kB\nCommitted_AS: 2900 kB\n");
    write("/proc/sys/vm/overcommit_memory", "0\n");
    write("/proc/self/status", "VmSize: 100 kB\nVmData: 50 kB\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  uint64_t kib() { return available_memory(root_).value() >> 10; }

  std::string root_;
};

TEST_F(AvailableMemory, IsTheMachinesWithSwap) {
  EXPECT_EQ(kib(), 5000U);
}

TEST_F(AvailableMemory, IsWhatMayBeCommittedWhereOvercommitmentIsOff) {
  write("/proc/sys/vm/overcommit_memory", "2\n");
  EXPECT_EQ(kib(), 100U);
}

TEST_F(AvailableMemory, IsTheLeastOfEveryGroupAbove) {
  write("/proc/self/cgroup", "0::/a/b\n");
  write("/sys/fs/cgroup/a/b/memory.max", "max\n");
  write("/sys/fs/cgroup/a/b/memory.current", "1\n");
  EXPECT_EQ(kib(), 5000U);
  // 2,048 KiB, of which 1,024 are held and 512 of these are pages of files.
  write("/sys/fs/cgroup/a/memory.max", "2097152\n");
  write("/sys/fs/cgroup/a/memory.current", "1048576\n");
  write("/sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 524288\nactive_file 7\n");
  EXPECT_EQ(kib(), 1536U);
  write("/sys/fs/cgroup/memory.max", "10240\n");  // as a container sees its own
  write("/sys/fs/cgroup/memory.current", "20480\n");
  EXPECT_EQ(kib(), 0U);
}

TEST_F(AvailableMemory, KnowsTheFirstVersionOfGroups) {
  write("/proc/self/cgroup", "9:cpu:/x\n4:devices,memory:/docker/x\n");
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1048576\n");
  write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "524288\n");
  write("/sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 262144\n");
  EXPECT_EQ(kib(), 768U);
}

TEST_F(AvailableMemory, IsUnknownWithoutFiles) {
  EXPECT_FALSE(available_memory(root_ + "/nowhere").has_value());
}

TEST_F(AvailableMemory, OfThisMachineIsSomething) {
#if defined(__linux__)
  ASSERT_TRUE(available_memory().has_value());
  EXPECT_GT(*available_memory(), uint64_t{1} << 20);
  EXPECT_THROW(require_memory(uint64_t{1} << 60), NotEnoughMemory);
#endif
  EXPECT_NO_THROW(require_memory(1));
}

// case N18
TEST(OutOfMemory, ErrorsNameTheSizes) {
  try {
    within_memory([]() -> int { throw NotEnoughMemory(uint64_t{3} << 30, uint64_t{5} << 20); },
                  [] { return std::string("no room: make some"); });
    FAIL() << "nothing was thrown";
  } catch (const DeviceError& error) {
    EXPECT_STREQ(error.what(), "no room: make some (3.0 GiB are needed, 5.0 MiB are free)");
  }
}

}  // namespace
}  // namespace tabes
