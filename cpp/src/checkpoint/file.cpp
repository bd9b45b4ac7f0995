#include "checkpoint/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "checkpoint/checks.h"

namespace tabes::checkpoint {
namespace {

// std::strerror is not thread-safe; this is.
std::string error_text(int code) {
  return std::generic_category().message(code);
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "a special file";
}

}  // namespace

bool entry_exists(const std::string& path) {
  struct stat info{};
  return ::lstat(path.c_str(), &info) == 0;
}

void check_folder(const std::string& path) {
  struct stat info{};
  if (::stat(path.c_str(), &info) != 0) {
    fail(path, "no such folder (tabes reads local folders and downloads nothing)");
  }
  if (!S_ISDIR(info.st_mode)) {
    fail(path, "is not a folder: pass the one that holds config.json and the weights");
  }
}

std::string read_text(const std::string& path, uint64_t limit) {
  std::string text = File(path).read_all(limit);
  if (text.starts_with("\xff\xfe") || text.starts_with("\xfe\xff")) {
    fail(path, "is UTF-16: save it as UTF-8");
  }
  if (text.starts_with("version https://git-lfs")) {
    fail(path, "is a Git LFS pointer, not the file: run `git lfs pull` in its folder");
  }
  if (text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);
  return text;
}

File::File(std::string path) : path_(std::move(path)) {
  // Without O_NONBLOCK opening a pipe waits for a writer, perhaps forever.
  do {
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
  } while (descriptor_ < 0 && errno == EINTR);
  if (descriptor_ < 0) fail(path_, "cannot be opened: " + error_text(errno));

  struct stat info{};
  const int status = ::fstat(descriptor_, &info);
  const int code = errno;
  if (status == 0 && S_ISREG(info.st_mode)) {
    size_ = static_cast<uint64_t>(info.st_size);
    return;
  }
  ::close(descriptor_);
  if (status != 0) fail(path_, "cannot be examined: " + error_text(code));
  fail(path_, std::string("is ") + kind_of(info.st_mode) + ", not a regular file");
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_) {}

void File::read(uint64_t offset, void* destination, size_t bytes) const {
  // Linux moves at most 2 GiB a call, whatever is asked for.
  constexpr size_t kPiece = size_t{1} << 30;
  auto* out = static_cast<char*>(destination);
  while (bytes > 0) {
    const ssize_t got =
        ::pread(descriptor_, out, std::min(bytes, kPiece), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path_, "cannot be read: " + error_text(errno));
    if (got == 0) {
      fail(path_, "ends at byte " + std::to_string(offset) + " though it had " +
                      std::to_string(size_) + " when opened: something is truncating it");
    }
    out += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<size_t>(got);
  }
}

std::string File::read_all(uint64_t limit) const {
  if (size_ > limit) {
    fail(path_, "has " + std::to_string(size_) + " bytes; such a file may have at most " +
                    std::to_string(limit));
  }
  std::string text(size_, '\0');
  read(0, text.data(), text.size());
  return text;
}

}  // namespace tabes::checkpoint
