#include "checkpoint/tensor_read.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <string>
#include <type_traits>

#include "checkpoint/checks.h"
#include "messages.h"

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

// Numbers as bits: less the sign they are ordered as their magnitudes are, infinity above all and
// NaN above that.
template <typename Bits>
struct Form {
  static constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  static constexpr Bits kMagnitude = static_cast<Bits>(~kSign);

  // Of `limit` and above, NaN among them. Compares signed numbers, which is what CPUs have vector
  // instructions for.
  static bool any_from(const Bits* bits, size_t count, Bits limit) {
    using Signed = std::make_signed_t<Bits>;
    constexpr size_t kPiece = 4096;
    for (size_t at = 0; at < count; at += kPiece) {
      const size_t end = std::min(at + kPiece, count);
      Signed found = 0;
      for (size_t i = at; i < end; ++i) {
        found |= static_cast<Signed>(bits[i] & kMagnitude) >= static_cast<Signed>(limit) ? -1 : 0;
      }
      if (found != 0) return true;
    }
    return false;
  }
};

// What the numbers of a tensor must be.
struct Bounds {
  uint64_t infinity = 0;  // its bits
  uint64_t limit = 0;     // the bits of the least magnitude that is too large
  bool minus_infinity = false;
  std::string target;  // dtype for which it is too large
};

// The element at which the tensor's data breaks the bounds, or nothing.
template <typename Bits>
std::optional<size_t> breach(const void* data, size_t bytes, const Bounds& bounds) {
  const auto* bits = static_cast<const Bits*>(data);
  const size_t count = bytes / sizeof(Bits);
  if (!Form<Bits>::any_from(bits, count, static_cast<Bits>(bounds.limit))) return std::nullopt;
  for (size_t i = 0; i < count; ++i) {
    const Bits magnitude = bits[i] & Form<Bits>::kMagnitude;
    if (magnitude < bounds.limit) continue;
    if (bounds.minus_infinity && magnitude == bounds.infinity && magnitude != bits[i]) continue;
    return i;
  }
  return std::nullopt;
}

std::optional<size_t> breach_of(Dtype dtype, const void* data, size_t bytes, const Bounds& bounds) {
  switch (dtype) {
    case Dtype::f16:
    case Dtype::bf16:
      return breach<uint16_t>(data, bytes, bounds);
    case Dtype::f32:
      return breach<uint32_t>(data, bytes, bounds);
    case Dtype::f64:
      return breach<uint64_t>(data, bytes, bounds);
    default:
      return std::nullopt;
  }
}

Bounds bounds_of(Dtype dtype, at::ScalarType wanted, bool minus_infinity) {
  Bounds bounds;
  bounds.minus_infinity = minus_infinity;
  // The least float32 and float64 that round to infinity in a narrower dtype: its largest number
  // and half a unit in its last place.
  constexpr uint32_t kHalf32 = 0x477ff000, kBrain32 = 0x7f7f8000;
  constexpr uint64_t kHalf64 = 0x40effe0000000000, kBrain64 = 0x47eff00000000000,
                     kFloat64 = 0x47effffff0000000;
  constexpr uint16_t kHalfOfBrain = 0x4780;  // 65536: 65520 is no bfloat16
  const bool half = wanted == at::kHalf, brain = wanted == at::kBFloat16;
  switch (dtype) {
    case Dtype::f16:
      bounds.infinity = bounds.limit = 0x7c00;
      break;
    case Dtype::bf16:
      bounds.infinity = 0x7f80;
      bounds.limit = half ? kHalfOfBrain : bounds.infinity;
      break;
    case Dtype::f32:
      bounds.infinity = 0x7f800000;
      bounds.limit = half ? kHalf32 : brain ? kBrain32 : bounds.infinity;
      break;
    case Dtype::f64:
      bounds.infinity = 0x7ff0000000000000;
      bounds.limit = half                   ? kHalf64
                     : brain                ? kBrain64
                     : wanted == at::kFloat ? kFloat64
                                            : bounds.infinity;
      break;
    default:
      break;
  }
  bounds.target = c10::toString(wanted);
  return bounds;
}

std::string place(const TensorInfo& tensor, uint64_t element) {
  std::string out;
  for (size_t i = tensor.shape.size(); i > 0; --i) {
    const auto size = static_cast<uint64_t>(tensor.shape[i - 1]);
    out = std::to_string(element % size) + (out.empty() ? "" : ", ") + out;
    element /= size;
  }
  return "[" + out + "]";
}

// Refuses numbers that no trained weight is: attention on the CPU would take a NaN for a masked
// score and go on, so nothing later can be relied on to notice.
void check_numbers(const SafetensorsFile& file, const TensorInfo& tensor, int64_t first_row,
                   const at::Tensor& part, const Bounds& bounds) {
  const auto* data = static_cast<const char*>(part.const_data_ptr());
  const auto found = breach_of(tensor.dtype, data, part.nbytes(), bounds);
  if (!found) return;
  const int64_t row = part.dim() == 0 ? 1 : part.numel() / part.size(0);
  const double value = part.flatten().select(0, static_cast<int64_t>(*found)).item<double>();
  const std::string at = "tensor " + quote(tensor.name) + " is " +
                         (std::isnan(value) ? "NaN" : text(value)) + " at " +
                         place(tensor, static_cast<uint64_t>(first_row * row) + *found);
  if (std::isfinite(value)) {
    fail(file.path(), at + ", too large for " + bounds.target + ": load it in bfloat16 or float32");
  }
  fail(file.path(), at + ": the file is damaged, or the training that wrote it diverged");
}

// Reads rows first .. first + buffer.size(0) - 1, or all of it if it has rank 0.
void read_rows(const SafetensorsFile& file, const TensorInfo& tensor, int64_t first,
               const at::Tensor& buffer, const Bounds& bounds) {
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
  check_numbers(file, tensor, first, buffer, bounds);
}

}  // namespace

void read_into(const SafetensorsFile& file, const TensorInfo& tensor, const at::Tensor& destination,
               bool minus_infinity) {
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
  const Bounds bounds = bounds_of(tensor.dtype, wanted, minus_infinity);
  if (*stored == wanted && destination.is_cpu() && destination.is_contiguous()) {
    read_rows(file, tensor, 0, destination, bounds);
    return;
  }
  const auto options = at::TensorOptions().dtype(stored);
  if (destination.dim() == 0) {
    const at::Tensor buffer = at::empty({}, options);
    read_rows(file, tensor, 0, buffer, bounds);
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
    read_rows(file, tensor, first, part, bounds);
    destination.narrow(0, first, count).copy_(part);
  }
}

}  // namespace tabes::checkpoint
