#include <c10/util/Exception.h>
#include <torch/csrc/Exceptions.h>

#include "bindings.h"
#include "tabes/error.h"

namespace tabes::python {
namespace {

namespace py = pybind11;

// The Python classes; they live as long as the module, which is as long as the interpreter.
PyObject *error, *checkpoint_error, *input_error, *numerics_error, *device_error;

PyObject* define(py::module_& m, const char* name, const char* doc, const py::tuple& bases) {
  const std::string qualified = std::string("tabes.") + name;
  PyObject* type = PyErr_NewExceptionWithDoc(qualified.c_str(), doc, bases.ptr(), nullptr);
  if (!type) throw py::error_already_set();
  m.attr(name) = py::reinterpret_borrow<py::object>(type);
  return type;
}

}  // namespace

void register_errors(py::module_& m) {
  error = define(m, "Error", "Base of every error tabes raises.",
                 py::make_tuple(py::handle(PyExc_RuntimeError)));
  const auto base = py::make_tuple(py::handle(error));
  checkpoint_error = define(m, "CheckpointError", "A checkpoint that cannot be used.", base);
  input_error = define(m, "InputError", "An argument outside its documented range.",
                       py::make_tuple(py::handle(error), py::handle(PyExc_ValueError)));
  numerics_error = define(m, "NumericsError", "The model computed NaN or infinite values.", base);
  device_error =
      define(m, "DeviceError", "A device or dtype that is missing, or out of memory.", base);
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (python_error& e) {
      // From a Python function in autograd's backward pass. The engine has usually restored it.
      e.restore();
    } catch (const CheckpointError& e) {
      PyErr_SetString(checkpoint_error, e.what());
    } catch (const InputError& e) {
      PyErr_SetString(input_error, e.what());
    } catch (const NumericsError& e) {
      PyErr_SetString(numerics_error, e.what());
    } catch (const DeviceError& e) {
      PyErr_SetString(device_error, e.what());
    } catch (const Error& e) {
      PyErr_SetString(error, e.what());
    } catch (const c10::OutOfMemoryError& e) {
      PyErr_SetString(device_error, e.what_without_backtrace());
    } catch (const c10::Error& e) {
      PyErr_SetString(error, e.what_without_backtrace());
    }
  });
}

}  // namespace tabes::python
