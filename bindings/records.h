// Plain structs as Python objects: fields with their help, pickling, copying.
#pragma once

#include <pybind11/stl.h>

#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings.h"
#include "tabes/denoiser.h"
#include "tabes/error.h"

namespace tabes::python {

template <typename Record, typename Value>
struct Field {
  const char* name;
  Value Record::* member;
  const char* help;
};
template <typename Record, typename Value>
Field(const char*, Value Record::*, const char*) -> Field<Record, Value>;

// What a field travels as. Tensors travel as bytes: torch's own way shares memory with the process
// that sent them, which may be gone when they arrive.
template <typename Value>
pybind11::object packed(const Value& value) {
  return pybind11::cast(value);
}
template <typename Value>
void unpack(const pybind11::handle& state, Value& into) {
  into = state.cast<Value>();
}

pybind11::object packed(const at::Tensor& tensor);
void unpack(const pybind11::handle& state, at::Tensor& into);
pybind11::object packed(const at::Device& device);
void unpack(const pybind11::handle& state, at::Device& into);
pybind11::object packed(const Cost& cost);
void unpack(const pybind11::handle& state, Cost& into);
pybind11::object packed(const at::ScalarType& type);
void unpack(const pybind11::handle& state, at::ScalarType& into);

inline pybind11::object packed(const std::vector<at::Tensor>& tensors) {
  pybind11::list all;
  for (const at::Tensor& tensor : tensors) all.append(packed(tensor));
  return all;
}
inline void unpack(const pybind11::handle& state, std::vector<at::Tensor>& into) {
  for (const pybind11::handle one : pybind11::iter(state)) unpack(one, into.emplace_back());
}

// Pickles and copies a record by these members.
template <typename Class, typename Record, typename... Values>
void def_pickle(Class& cls, Values Record::*... members) {
  namespace py = pybind11;
  cls.def(py::pickle(
      [members...](const Record& record) { return py::make_tuple(packed(record.*members)...); },
      [members...](const py::tuple& state) {
        if (state.size() != sizeof...(members)) {
          throw InputError("this was pickled by another version of tabes");
        }
        Record record;
        size_t i = 0;
        (unpack(state[i++], record.*members), ...);
        return record;
      }));
  def_protocol(cls);
}

// A read-only attribute with its help; of a cost its three numbers.
template <typename Class, typename Record, typename Value>
void def_field(Class& cls, const Field<Record, Value>& field) {
  if constexpr (std::is_same_v<Value, Cost>) {
    const auto number = [&](const char* name, int64_t Cost::* rows, const char* help) {
      const auto get = [cost = field.member, rows](const Record& r) { return (r.*cost).*rows; };
      cls.def_property_readonly(name, get, help);
    };
    number("forward_rows", &Cost::forward_rows, field.help);
    number("backward_rows", &Cost::backward_rows, "Token rows through its adjoint.");
    number("head_rows", &Cost::head_rows, "Token rows through the vocabulary projection.");
  } else {
    cls.def_readonly(field.name, field.member, field.help);
  }
}
template <typename Class, typename Record, typename... Values>
void def_fields(Class& cls, const Field<Record, Values>&... fields) {
  (def_field(cls, fields), ...);
}

// Both, where every member is an attribute.
template <typename Class, typename Record, typename... Values>
void def_record(Class& cls, const Field<Record, Values>&... fields) {
  def_fields(cls, fields...);
  def_pickle(cls, fields.member...);
}

}  // namespace tabes::python
