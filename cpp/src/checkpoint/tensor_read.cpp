#include "checkpoint/tensor_read.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <optional>

#include "checkpoint/checks.h"

namespace tabes::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

constexpr int64_t kBufferBytes = int64_t{32} << 20;

std::optional<at::ScalarType> scalar_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::boolean:
      return at::kBool;
    case Dtype::u8:
      return at::kByte;
    case Dtype::i8:
      return at::kChar;
    case Dtype::i16:
      return at::kShort;
    case Dtype::i32:
      return at::kInt;
    case Dtype::i64:
      return at::kLong;
    case Dtype::f16:
      return at::kHalf;
    case Dtype::bf16:
      return at::kBFloat16;
    case Dtype::f32:
      return at::kFloat;
    case Dtype::f64:
      return at::kDouble;
    default:
      return std::nullopt;
  }
}

// Reads rows first .. first + buffer.size(0) - 1, or all of it if it has rank 0.
void read_rows(const SafetensorsFile& file, const TensorInfo& tensor, int64_t first,
               const at::Tensor& buffer) {
  const size_t bytes = buffer.nbytes();
  if (bytes == 0) return;
  const auto row = buffer.dim() == 0 ? 0 : bytes / static_cast<size_t>(buffer.size(0));
  auto* data = static_cast<uint8_t*>(buffer.mutable_data_ptr());
  file.read(tensor, static_cast<uint64_t>(first) * row, data, bytes);
  // Any other byte in a bool is undefined behaviour in the code that will use it.
  if (tensor.dtype == Dtype::boolean &&
      std::any_of(data, data + bytes, [](uint8_t byte) { return byte > 1; })) {
    fail(file.path(), "tensor " + quote(tensor.name) + " holds booleans other than 0 and 1");
  }
}

}  // namespace

void read_into(const SafetensorsFile& file, const TensorInfo& tensor,
               const at::Tensor& destination) {
  const std::string subject = "tensor " + quote(tensor.name);
  if (destination.sizes() != at::IntArrayRef(tensor.shape)) {
    fail(file.path(), subject + " has shape " + c10::str(at::IntArrayRef(tensor.shape)) + ", not " +
                          c10::str(destination.sizes()));
  }
  const auto stored = scalar_type(tensor.dtype);
  const at::ScalarType wanted = destination.scalar_type();
  if (!stored) {
    fail(file.path(), subject + " has dtype " + name_of(tensor.dtype) +
                          ", which tabes does not read: convert the checkpoint to BF16 or F32");
  }
  if (*stored != wanted && !(at::isFloatingType(*stored) && at::isFloatingType(wanted))) {
    fail(file.path(), subject + " has dtype " + name_of(tensor.dtype) + " where " +
                          c10::toString(wanted) + " is needed: quantised checkpoints are not read");
  }
  if (*stored == wanted && destination.is_cpu() && destination.is_contiguous()) {
    read_rows(file, tensor, 0, destination);
    return;
  }
  const auto options = at::TensorOptions().dtype(*stored);
  if (destination.dim() == 0) {
    const at::Tensor buffer = at::empty({}, options);
    read_rows(file, tensor, 0, buffer);
    destination.copy_(buffer);
    return;
  }
  const int64_t rows = destination.size(0);
  if (destination.numel() == 0) return;
  const int64_t row_bytes = static_cast<int64_t>(tensor.bytes()) / rows;
  const int64_t step = std::clamp<int64_t>(kBufferBytes / row_bytes, 1, rows);
  std::vector<int64_t> shape = tensor.shape;
  shape[0] = step;
  const at::Tensor buffer = at::empty(shape, options);
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t count = std::min(step, rows - first);
    const at::Tensor part = buffer.narrow(0, 0, count);
    read_rows(file, tensor, first, part);
    destination.narrow(0, first, count).copy_(part);
  }
}

}  // namespace tabes::checkpoint
