#include "checkpoint/safetensors.h"

#include <algorithm>
#include <utility>

#include "checkpoint/checks.h"

namespace tabes::checkpoint {
namespace {

struct Signature {
  std::string_view start;
  const char* what;
};

// Files that get the name model.safetensors by accident. Only consulted once the length makes no
// sense, as a short header may start with the same bytes.
constexpr Signature kSignatures[] = {
    {"version https://git-lfs",
     "is a Git LFS pointer, not the weights: run `git lfs pull` in its folder"},
    {std::string_view("PK\x03\x04", 4),
     "is a PyTorch pickle archive under another name, which is never opened: `tabes convert IN "
     "OUT` rewrites it as safetensors"},
    {"\x80",
     "is a Python pickle under another name, which is never opened: `tabes convert IN OUT` "
     "rewrites it as safetensors"},
    {"GGUF", "is a GGUF file, not safetensors"},
    {"\x89HDF", "is an HDF5 file, not safetensors"},
    {"<", "is a web page or XML, not safetensors: the download has probably failed"},
    {"{", "is JSON without the 8 bytes of length that start a safetensors file"},
};

[[noreturn]] void reject_prefix(std::string_view prefix, const std::string& file,
                                const std::string& otherwise) {
  for (const Signature& signature : kSignatures) {
    if (prefix.starts_with(signature.start)) fail(file, signature.what);
  }
  fail(file, otherwise);
}

}  // namespace

uint64_t parse_header_length(std::string_view prefix, uint64_t file_bytes,
                             const std::string& file) {
  if (file_bytes == 0) fail(file, "is empty");
  if (file_bytes < 8 || prefix.size() < 8) {
    reject_prefix(
        prefix, file,
        "has " + std::to_string(file_bytes) + " bytes, too few for a safetensors file: truncated?");
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(prefix[i]);
  if (length > kMaxHeaderBytes) {
    reject_prefix(prefix, file,
                  "announces a header of " + std::to_string(length) +
                      " bytes, more than the format's limit of " + std::to_string(kMaxHeaderBytes) +
                      ": not safetensors?");
  }
  if (length > file_bytes - 8) {
    reject_prefix(prefix, file,
                  "announces a header of " + std::to_string(length) + " bytes but has only " +
                      std::to_string(file_bytes - 8) + " after the length: truncated?");
  }
  return length;
}

SafetensorsFile::SafetensorsFile(std::string path) : file_(std::move(path)) {
  std::string prefix(std::min<uint64_t>(file_.size(), 64), '\0');
  file_.read(0, prefix.data(), prefix.size());
  const uint64_t length = parse_header_length(prefix, file_.size(), file_.path());
  std::string header(length, '\0');
  file_.read(8, header.data(), header.size());
  data_start_ = 8 + length;
  tensors_ = parse_header(header, file_.size() - data_start_, file_.path());
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto it =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const TensorInfo& t, std::string_view n) { return t.name < n; });
  return it != tensors_.end() && it->name == name ? &*it : nullptr;
}

void SafetensorsFile::read(const TensorInfo& tensor, uint64_t offset, void* destination,
                           size_t bytes) const {
  file_.read(data_start_ + tensor.begin + offset, destination, bytes);
}

}  // namespace tabes::checkpoint
