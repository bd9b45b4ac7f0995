// The JSON header of a safetensors file. It is checked while it streams by: building a document
// first would take many times the header's size, and headers may have 100 MB.
#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "checkpoint/checks.h"
#include "checkpoint/json.h"
#include "checkpoint/safetensors.h"

namespace tabes::checkpoint {
namespace {

struct DtypeName {
  const char* name;
  Dtype dtype;
  uint64_t bytes;
};

constexpr std::array<DtypeName, 19> kDtypes = {{
    {"BOOL", Dtype::boolean, 1},
    {"U8", Dtype::u8, 1},
    {"I8", Dtype::i8, 1},
    {"F8_E5M2", Dtype::f8_e5m2, 1},
    {"F8_E4M3", Dtype::f8_e4m3, 1},
    {"F8_E8M0", Dtype::f8_e8m0, 1},
    {"F8_E4M3FNUZ", Dtype::f8_e4m3fnuz, 1},
    {"F8_E5M2FNUZ", Dtype::f8_e5m2fnuz, 1},
    {"I16", Dtype::i16, 2},
    {"U16", Dtype::u16, 2},
    {"F16", Dtype::f16, 2},
    {"BF16", Dtype::bf16, 2},
    {"I32", Dtype::i32, 4},
    {"U32", Dtype::u32, 4},
    {"F32", Dtype::f32, 4},
    {"F64", Dtype::f64, 8},
    {"I64", Dtype::i64, 8},
    {"U64", Dtype::u64, 8},
    {"C64", Dtype::c64, 8},
}};

const DtypeName& entry_of(Dtype dtype) {
  return *std::find_if(kDtypes.begin(), kDtypes.end(),
                       [dtype](const DtypeName& e) { return e.dtype == dtype; });
}

// Bytes of a tensor of this shape, or nothing if they, or the number of elements along non-empty
// dimensions (which strides are made of), do not fit.
std::optional<uint64_t> byte_count(const TensorInfo& tensor) {
  uint64_t extent = entry_of(tensor.dtype).bytes;
  bool empty = false;
  for (const int64_t size : tensor.shape) {
    empty |= size == 0;
    const auto next = checked_multiply(extent, static_cast<uint64_t>(std::max<int64_t>(size, 1)));
    if (!next || *next > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return {};
    extent = *next;
  }
  return empty ? 0 : extent;
}

class HeaderReader final : public JsonEvents {
 public:
  explicit HeaderReader(const std::string& file) : file_(file) {}

  void null() override {
    // The reference reader takes this for no metadata at all.
    if (state_ == State::top && in_metadata_) return;
    unexpected("null");
  }
  void boolean(bool) override { unexpected("a boolean"); }
  void number(double) override { unexpected("a number that is no non-negative integer"); }

  void integer(int64_t value) override {
    if (value < 0) unexpected("a negative number");
    if (state_ == State::shape) {
      if (tensor_.shape.size() == kMaxRank) {
        fail_tensor("has more than " + std::to_string(kMaxRank) + " dimensions");
      }
      tensor_.shape.push_back(value);
    } else if (state_ == State::offsets) {
      if (offsets_ == 2) fail_tensor("has more than two data_offsets");
      (offsets_++ == 0 ? tensor_.begin : tensor_.end) = static_cast<uint64_t>(value);
    } else {
      unexpected("a number");
    }
  }

  void string(std::string value) override {
    if (state_ == State::metadata) return;
    if (state_ != State::tensor || field_ != kDtype) unexpected("a string");
    const auto it = std::find_if(kDtypes.begin(), kDtypes.end(),
                                 [&](const DtypeName& e) { return e.name == value; });
    if (it == kDtypes.end()) fail_tensor("has the unknown dtype " + quote(value));
    tensor_.dtype = it->dtype;
  }

  void begin_object() override {
    if (state_ == State::start) {
      state_ = State::top;
    } else if (state_ == State::top) {
      state_ = in_metadata_ ? State::metadata : State::tensor;
    } else {
      unexpected("an object");
    }
  }

  void key(std::string name) override {
    if (state_ == State::top) {
      tensor_ = TensorInfo();
      tensor_.name = std::move(name);
      // The parser's buffer grows by doubling; half a million names should not keep the slack.
      tensor_.name.shrink_to_fit();
      begin_entry();
    } else if (state_ == State::metadata) {
      if (metadata_keys_.size() == kMaxMetadataEntries) fail(file_, "has too much __metadata__");
      metadata_keys_.push_back(std::move(name));
    } else {
      begin_field(name);
    }
  }

  void end_object() override {
    if (state_ == State::tensor) {
      end_tensor();
      state_ = State::top;
    } else if (state_ == State::metadata) {
      std::sort(metadata_keys_.begin(), metadata_keys_.end());
      const auto twin = std::adjacent_find(metadata_keys_.begin(), metadata_keys_.end());
      if (twin != metadata_keys_.end()) {
        fail(file_, "the __metadata__ key " + quote(*twin) + " is repeated");
      }
      state_ = State::top;
    }
  }

  void begin_array() override {
    if (state_ != State::tensor || field_ == kDtype) unexpected("an array");
    state_ = field_ == kShape ? State::shape : State::offsets;
  }

  void end_array() override { state_ = State::tensor; }

  std::vector<TensorInfo> take() { return std::move(tensors_); }

 private:
  enum class State { start, top, metadata, tensor, shape, offsets };
  enum Field : unsigned { kDtype = 1, kShape = 2, kOffsets = 4, kAll = 7 };

  void begin_entry() {
    in_metadata_ = tensor_.name == "__metadata__";
    if (in_metadata_) {
      if (metadata_seen_) fail(file_, "the key \"__metadata__\" is repeated");
      metadata_seen_ = true;
      return;
    }
    offsets_ = 0;
    seen_ = 0;
    if (tensor_.name.empty()) fail(file_, "holds a tensor with an empty name");
    if (tensor_.name.size() > kMaxNameBytes) {
      fail_tensor("has a name longer than " + std::to_string(kMaxNameBytes) + " bytes");
    }
    if (has_control_characters(tensor_.name)) fail_tensor("has control characters in its name");
    if (tensors_.size() == kMaxTensors) {
      fail(file_, "holds more than " + std::to_string(kMaxTensors) + " tensors");
    }
  }

  void begin_field(const std::string& name) {
    if (name == "dtype") {
      field_ = kDtype;
    } else if (name == "shape") {
      field_ = kShape;
    } else if (name == "data_offsets") {
      field_ = kOffsets;
    } else {
      fail_tensor("has the unknown field " + quote(name));
    }
    if ((seen_ & field_) != 0) fail_tensor("has the field " + quote(name) + " twice");
    seen_ |= field_;
  }

  void end_tensor() {
    if (seen_ != kAll) fail_tensor("lacks one of dtype, shape and data_offsets");
    if (offsets_ != 2) fail_tensor("has fewer than two data_offsets");
    if (tensor_.begin > tensor_.end) fail_tensor("has data_offsets in the wrong order");
    const auto bytes = byte_count(tensor_);
    if (!bytes) fail_tensor("has a shape whose size does not fit 64 bits");
    if (*bytes != tensor_.bytes()) {
      fail_tensor("takes " + std::to_string(*bytes) + " bytes by its shape and dtype but " +
                  std::to_string(tensor_.bytes()) + " by its data_offsets");
    }
    tensors_.push_back(std::move(tensor_));
  }

  [[noreturn]] void fail_tensor(const std::string& what) const {
    fail(file_, "tensor " + quote(tensor_.name) + " " + what);
  }

  [[noreturn]] void unexpected(const char* what) const {
    const std::string found = std::string(what) + " where it does not belong";
    if (state_ == State::start) fail(file_, "the header is not a JSON object");
    if (in_metadata_) fail(file_, "__metadata__ holds " + found + ": it maps strings to strings");
    fail_tensor("is described by " + found);
  }

  const std::string& file_;
  State state_ = State::start;
  bool in_metadata_ = false;
  bool metadata_seen_ = false;
  std::vector<std::string> metadata_keys_;
  TensorInfo tensor_;
  unsigned seen_ = 0;
  Field field_ = kDtype;
  int offsets_ = 0;
  std::vector<TensorInfo> tensors_;
};

void check_tiling(const std::vector<TensorInfo>& tensors, uint64_t data_bytes,
                  const std::string& file) {
  std::vector<uint32_t> order(tensors.size());
  std::iota(order.begin(), order.end(), 0U);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return std::pair(tensors[a].begin, tensors[a].end) <
           std::pair(tensors[b].begin, tensors[b].end);
  });
  uint64_t reached = 0;
  for (const uint32_t i : order) {
    const TensorInfo& t = tensors[i];
    const auto subject = [&t] { return "tensor " + quote(t.name); };
    if (t.end > data_bytes) {
      fail(file, subject() + " ends at data byte " + std::to_string(t.end) + " of " +
                     std::to_string(data_bytes) + ": truncated?");
    }
    if (t.begin < reached) fail(file, subject() + " overlaps another tensor");
    if (t.begin > reached) fail(file, "unused bytes lie before " + subject());
    reached = t.end;
  }
  if (reached != data_bytes) {
    fail(file, std::to_string(data_bytes - reached) + " unused bytes lie after the last tensor");
  }
}

}  // namespace

const char* name_of(Dtype dtype) {
  return entry_of(dtype).name;
}

std::vector<TensorInfo> parse_header(std::string_view json, uint64_t data_bytes,
                                     const std::string& file) {
  // A tensor is at most 4 values plus its rank and offsets; the depth is object, tensor, array.
  const JsonLimits limits{.depth = 3, .values = kMaxTensors * (kMaxRank + 6)};
  HeaderReader reader(file);
  parse_json(json, file, reader, limits);
  std::vector<TensorInfo> tensors = reader.take();
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  const auto twin =
      std::adjacent_find(tensors.begin(), tensors.end(),
                         [](const TensorInfo& a, const TensorInfo& b) { return a.name == b.name; });
  if (twin != tensors.end()) fail(file, "the tensor name " + quote(twin->name) + " is repeated");
  check_tiling(tensors, data_bytes, file);
  return tensors;
}

}  // namespace tabes::checkpoint
