#include <c10/util/Exception.h>
#include <torch/csrc/Exceptions.h>

#include <cstring>

#include "bindings.h"
#include "tabes/error.h"

namespace tabes::python {
namespace {

namespace py = pybind11;

// The Python classes, of tabes/errors.py; they live as long as the interpreter.
PyObject *error, *checkpoint_error, *input_error, *numerics_error, *device_error;

PyObject* take(py::module_& m, const py::module_& errors, const char* name) {
  py::object type = errors.attr(name);
  m.attr(name) = type;
  return type.release().ptr();
}

// Not every text that an error quotes is UTF-8: file names, say.
void set(PyObject* type, const char* what) {
  const auto text = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(what, static_cast<Py_ssize_t>(std::strlen(what)), "backslashreplace"));
  if (text) PyErr_SetObject(type, text.ptr());
}

}  // namespace

void register_errors(py::module_& m) {
  const auto errors = py::module_::import("tabes.errors");
  error = take(m, errors, "Error");
  checkpoint_error = take(m, errors, "CheckpointError");
  input_error = take(m, errors, "InputError");
  numerics_error = take(m, errors, "NumericsError");
  device_error = take(m, errors, "DeviceError");
  // NOLINTNEXTLINE(performance-unnecessary-value-param): the type is pybind11's
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (python_error& e) {
      // From a Python function in autograd's backward pass. The engine has usually restored it.
      e.restore();
    } catch (const CheckpointError& e) {
      set(checkpoint_error, e.what());
    } catch (const InputError& e) {
      set(input_error, e.what());
    } catch (const NumericsError& e) {
      set(numerics_error, e.what());
    } catch (const DeviceError& e) {
      set(device_error, e.what());
    } catch (const Error& e) {
      set(error, e.what());
    } catch (const c10::OutOfMemoryError& e) {
      set(device_error, e.what_without_backtrace());
    } catch (const c10::Error& e) {
      set(error, e.what_without_backtrace());
    }
  });
}

}  // namespace tabes::python
