#include "records.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <tuple>

namespace tabes::python {
namespace {

namespace py = pybind11;

constexpr at::ScalarType kTypes[] = {at::kLong,   at::kInt,  at::kBool,    at::kFloat,
                                     at::kDouble, at::kHalf, at::kBFloat16};

[[noreturn]] void damaged() {
  throw InputError("a pickled tensor is damaged");
}

}  // namespace

py::object packed(const at::Tensor& tensor) {
  if (!tensor.defined()) return py::none();
  const at::Tensor host = tensor.detach().to(at::kCPU).contiguous();
  return py::make_tuple(packed(tensor.scalar_type()), host.sizes().vec(), packed(tensor.device()),
                        py::bytes(static_cast<const char*>(host.const_data_ptr()), host.nbytes()));
}

void unpack(const py::handle& state, at::Tensor& into) {
  into = at::Tensor();
  if (state.is_none()) return;
  const auto parts = state.cast<py::tuple>();
  if (parts.size() != 4) damaged();
  at::ScalarType type = at::kLong;
  at::Device device = at::kCPU;
  unpack(parts[0], type);
  unpack(parts[2], device);
  const auto sizes = parts[1].cast<std::vector<int64_t>>();
  const auto bytes = parts[3].cast<std::string_view>();
  // No product of sizes that fits these bytes overflows on the way.
  size_t left = bytes.size() / at::elementSize(type);
  const bool none = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
  for (const int64_t size : sizes) {
    if (size < 0 || (!none && left % static_cast<size_t>(size) != 0)) damaged();
    if (!none) left /= static_cast<size_t>(size);
  }
  if (none ? !bytes.empty() : left != 1 || bytes.size() % at::elementSize(type) != 0) damaged();
  at::Tensor host = at::empty(sizes, type);
  if (!none) std::memcpy(host.data_ptr(), bytes.data(), bytes.size());
  into = host.to(device);
}

py::object packed(const at::Device& device) {
  return py::str(device.str());
}

void unpack(const py::handle& state, at::Device& into) {
  into = at::Device(state.cast<std::string>());
}

py::object packed(const Cost& cost) {
  return py::make_tuple(cost.forward_rows, cost.backward_rows, cost.head_rows);
}

void unpack(const py::handle& state, Cost& into) {
  const auto [forward, backward, head] = state.cast<std::tuple<int64_t, int64_t, int64_t>>();
  into = {.forward_rows = forward, .backward_rows = backward, .head_rows = head};
}

py::object packed(const at::ScalarType& type) {
  return py::str(c10::toString(type));
}

void unpack(const py::handle& state, at::ScalarType& into) {
  const auto name = state.cast<std::string>();
  for (const at::ScalarType type : kTypes) {
    if (name == c10::toString(type)) {
      into = type;
      return;
    }
  }
  damaged();
}

}  // namespace tabes::python
