// Settings of policies, from Python and to it.
#include <pybind11/stl.h>

#include "bindings.h"

namespace tabes::python {
namespace {

namespace py = pybind11;

// What an object is written as in Python, in words where it cannot be.
std::string shown(const py::handle& value) {
  try {
    return py::repr(value).cast<std::string>();
  } catch (const py::error_already_set&) {  // an integer of 5000 digits, say
    return std::string("a ") + Py_TYPE(value.ptr())->tp_name;
  }
}

// One number; True and False are numbers to Python, but no caller means them.
std::optional<SettingValue> number(const py::handle& value) {
  if (PyBool_Check(value.ptr()) || py::isinstance<py::str>(value)) return std::nullopt;
  if (PyIndex_Check(value.ptr())) {
    const auto whole = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (whole) {
      int overflow = 0;
      const int64_t result = PyLong_AsLongLongAndOverflow(whole.ptr(), &overflow);
      if (overflow == 0) return result;
    }
    PyErr_Clear();
  }
  const double real = PyFloat_AsDouble(value.ptr());
  if (!PyErr_Occurred()) return real;
  PyErr_Clear();
  return std::nullopt;
}

// Whether a value is several, as a list or an array of at least one dimension is.
bool is_several(const py::handle& value) {
  if (py::isinstance<py::str>(value) || py::isinstance<py::bytes>(value)) return false;
  if (py::hasattr(value, "ndim")) return value.attr("ndim").cast<int64_t>() > 0;
  return py::hasattr(value, "__iter__");
}

// Text in UTF-8; lone surrogates, which it cannot hold, are written out.
std::string utf8(const py::handle& text) {
  return text.attr("encode")("utf-8", "backslashreplace").cast<std::string>();
}

SettingValue setting(const py::handle& value) {
  if (py::isinstance<py::str>(value)) return utf8(value);
  if (!is_several(value)) {
    if (const auto one = number(value)) return *one;
    return shown(value);
  }
  std::vector<double> all;
  for (const py::handle part : py::iter(value)) {
    const auto one = number(part);
    if (!one) return shown(value);
    const auto* whole = std::get_if<int64_t>(&*one);
    all.push_back(whole ? static_cast<double>(*whole) : std::get<double>(*one));
  }
  return all;
}

}  // namespace

PolicySettings policy_settings(const py::dict& given) {
  PolicySettings settings;
  for (const auto& [name, value] : given) {
    settings.emplace_back(utf8(py::str(name)), setting(value));
  }
  return settings;
}

py::object setting_object(const SettingValue& value) {
  return std::visit([](const auto& v) -> py::object { return py::cast(v); }, value);
}

}  // namespace tabes::python
