// Regular files, read with pread. No mmap: truncating a mapped file kills the process that reads
// it, truncating a file read this way is an error like any other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace tabes::checkpoint {

// Whether the folder has an entry of this name, be it a link that leads nowhere.
bool entry_exists(const std::string& path);

// Throws CheckpointError unless `path` is a folder.
void check_folder(const std::string& path);

class File {
 public:
  // Throws CheckpointError unless `path` is a regular file, or links to one, that can be opened.
  explicit File(std::string path);
  ~File();
  File(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  File& operator=(File&&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  // when it was opened

  // Reads exactly `bytes` bytes or throws CheckpointError.
  void read(uint64_t offset, void* destination, size_t bytes) const;

  // The whole content; throws CheckpointError if that is more than `limit` bytes.
  std::string read_all(uint64_t limit) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

// The content of a text file, less a byte order mark. Throws CheckpointError for one that has more
// than `limit` bytes, is not UTF-8 by its mark, or only stands for a file that was not fetched.
std::string read_text(const std::string& path, uint64_t limit);

}  // namespace tabes::checkpoint
