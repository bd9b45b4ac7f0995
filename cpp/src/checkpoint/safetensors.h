// The safetensors format: an 8-byte little-endian length, that many bytes of JSON describing the
// tensors, then their data. Stricter than the reference reader, which lets repeated names, unknown
// fields and unbounded ranks pass.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/file.h"

namespace tabes::checkpoint {

enum class Dtype : uint8_t {
  boolean,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e4m3fnuz,
  f8_e5m2fnuz,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  f64,
  i64,
  u64,
  c64,
};

const char* name_of(Dtype dtype);

inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
inline constexpr size_t kMaxTensors = 500'000;
inline constexpr size_t kMaxRank = 8;
inline constexpr size_t kMaxNameBytes = 1024;
inline constexpr size_t kMaxMetadataEntries = 65'536;

struct TensorInfo {
  std::string name;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // bytes from the start of the data
  uint64_t end = 0;
  Dtype dtype = Dtype::f32;

  uint64_t bytes() const { return end - begin; }
};

// Parses a header whose file has `data_bytes` bytes after it. Returns the tensors sorted by name.
// Throws CheckpointError unless they tile the data exactly: no overlap, no hole, nothing after.
std::vector<TensorInfo> parse_header(std::string_view json, uint64_t data_bytes,
                                     const std::string& file);

// The header's length, from the first bytes of a file. `prefix` holds up to 64 of them, so that a
// file that is something else altogether can be named as such.
uint64_t parse_header_length(std::string_view prefix, uint64_t file_bytes, const std::string& file);

class SafetensorsFile {
 public:
  // Reads and checks the header. Throws CheckpointError.
  explicit SafetensorsFile(std::string path);

  const std::string& path() const { return file_.path(); }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // sorted by name
  const TensorInfo* find(std::string_view name) const;                 // null if there is none

  // Reads `bytes` bytes of a tensor's data, from its byte `offset` on.
  void read(const TensorInfo& tensor, uint64_t offset, void* destination, size_t bytes) const;

 private:
  File file_;
  uint64_t data_start_ = 0;
  std::vector<TensorInfo> tensors_;
};

}  // namespace tabes::checkpoint
