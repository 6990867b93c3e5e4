// What a fused module was made of, looked at before each call: its attributes, and its tensors with samples of their
// values. Python's objects are read through its C API, so that a check costs microseconds. No reference is kept here.
#include "staleness.h"

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "api.h"

namespace py = pybind11;

namespace {

constexpr int64_t kMostDims = 4;

// Everything but its values that says whether a tensor is the one that was packed.
struct TensorState {
  int64_t pointer, version, type, dtype, dims, span;
  int64_t sizes[kMostDims], strides[kMostDims];
};

PyObject* interned(const char* name) {
  PyObject* text = PyUnicode_InternFromString(name);
  if (!text) throw py::error_already_set();
  return text;  // kept for the life of the process
}

py::object attribute(PyObject* object, PyObject* name) {
  PyObject* value = PyObject_GetAttr(object, name);
  if (!value) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

py::object method(PyObject* object, PyObject* name) {
  PyObject* value = PyObject_CallMethodObjArgs(object, name, nullptr);
  if (!value) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

int64_t integer(PyObject* number) {
  const int64_t value = PyLong_AsLongLong(number);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

int64_t version_of(PyObject* tensor) {
  static PyObject* const name = interned("_version");
  PyObject* value = PyObject_GetAttr(tensor, name);
  if (!value) {  // inference tensors count no versions; the samples are all there is
    if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) throw py::error_already_set();
    PyErr_Clear();
    return -1;
  }
  return integer(py::reinterpret_steal<py::object>(value).ptr());
}

// Sizes and strides, and the floats from the first to the last element: what may be read from the address on.
void read_layout(PyObject* tensor, TensorState& state) {
  static PyObject* const shape_name = interned("shape");
  static PyObject* const stride_name = interned("stride");
  const py::object shape = attribute(tensor, shape_name), stride = method(tensor, stride_name);
  const bool tuples = PyTuple_Check(shape.ptr()) && PyTuple_Check(stride.ptr());
  if (!tuples || PyTuple_GET_SIZE(shape.ptr()) != PyTuple_GET_SIZE(stride.ptr()))
    throw std::invalid_argument("tensor_state: not a tensor");
  state.dims = PyTuple_GET_SIZE(shape.ptr());
  if (state.dims > kMostDims) throw std::invalid_argument("tensor_state: more than four dimensions");
  state.span = 1;
  bool empty = false;
  for (int64_t i = 0; i < state.dims; i++) {
    state.sizes[i] = integer(PyTuple_GET_ITEM(shape.ptr(), i));
    state.strides[i] = integer(PyTuple_GET_ITEM(stride.ptr(), i));
    empty |= state.sizes[i] == 0;
    state.span += (state.sizes[i] - 1) * state.strides[i];
  }
  if (empty) state.span = 0;
}

TensorState read_tensor(PyObject* tensor) {
  static PyObject* const pointer_name = interned("data_ptr");
  static PyObject* const dtype_name = interned("dtype");
  TensorState state = {};
  state.pointer = integer(method(tensor, pointer_name).ptr());
  state.version = version_of(tensor);
  state.type = reinterpret_cast<int64_t>(Py_TYPE(tensor));
  state.dtype = reinterpret_cast<int64_t>(attribute(tensor, dtype_name).ptr());
  read_layout(tensor, state);
  if (state.pointer == 0 && state.span > 0) throw std::invalid_argument("tensor_state: a tensor without memory");
  return state;
}

int64_t fingerprint(const std::vector<TensorState>& states) {
  std::vector<std::uintptr_t> pointers;
  std::vector<int64_t> spans;
  for (const TensorState& state : states) {
    pointers.push_back(static_cast<std::uintptr_t>(state.pointer));
    spans.push_back(state.span);
  }
  return static_cast<int64_t>(mnv3_fast_fingerprint(pointers.data(), spans.data(), pointers.size()));
}

py::bytes tensor_state(const py::list& tensors) {
  std::vector<TensorState> states;
  for (const py::handle tensor : tensors) states.push_back(read_tensor(tensor.ptr()));
  const int64_t hash = fingerprint(states);
  std::string bytes(reinterpret_cast<const char*>(states.data()), states.size() * sizeof(TensorState));
  bytes.append(reinterpret_cast<const char*>(&hash), sizeof hash);
  return py::bytes(bytes);
}

bool matches(const py::bytes& recorded, const py::list& tensors) {
  char* data;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(recorded.ptr(), &data, &size) != 0) throw py::error_already_set();
  const std::size_t count = tensors.size();
  if (static_cast<std::size_t>(size) != count * sizeof(TensorState) + sizeof(int64_t)) return false;
  std::vector<TensorState> states(count);
  std::memcpy(states.data(), data, count * sizeof(TensorState));
  try {
    for (std::size_t i = 0; i < count; i++) {
      const TensorState now = read_tensor(PyList_GET_ITEM(tensors.ptr(), static_cast<Py_ssize_t>(i)));
      if (std::memcmp(&now, &states[i], sizeof now) != 0) return false;
    }
  } catch (const std::exception&) {
    return false;  // not a tensor any more, or one without memory
  }
  int64_t hash;
  std::memcpy(&hash, data + count * sizeof(TensorState), sizeof hash);
  return hash == fingerprint(states);
}

// Items [dictionary, key, expected, ...] are there, the same objects as they were.
bool same_items(PyObject* items) {
  for (Py_ssize_t i = 0; i + 2 < PyTuple_Size(items); i += 3) {
    PyObject* found = PyDict_GetItemWithError(PyTuple_GET_ITEM(items, i), PyTuple_GET_ITEM(items, i + 1));
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    if (found != PyTuple_GET_ITEM(items, i + 2)) return false;
  }
  return true;
}

// Items [dictionary, key, ...] are missing or None.
bool absent_items(PyObject* items) {
  for (Py_ssize_t i = 0; i + 1 < PyTuple_Size(items); i += 2) {
    PyObject* found = PyDict_GetItemWithError(PyTuple_GET_ITEM(items, i), PyTuple_GET_ITEM(items, i + 1));
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    if (found && found != Py_None) return false;
  }
  return true;
}

// Dictionaries [dictionary, number of items, ...].
bool same_sizes(PyObject* items) {
  for (Py_ssize_t i = 0; i + 1 < PyTuple_Size(items); i += 2) {
    const Py_ssize_t size = PyDict_Size(PyTuple_GET_ITEM(items, i));
    if (size < 0) throw py::error_already_set();
    if (size != integer(PyTuple_GET_ITEM(items, i + 1))) return false;
  }
  return true;
}

// Objects [object, class, ...] are still of exactly that class.
bool same_types(PyObject* items) {
  for (Py_ssize_t i = 0; i + 1 < PyTuple_Size(items); i += 2) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(PyTuple_GET_ITEM(items, i))) != PyTuple_GET_ITEM(items, i + 1))
      return false;
  }
  return true;
}

bool unchanged(const py::tuple& same, const py::tuple& absent, const py::tuple& sizes, const py::tuple& types) {
  return same_items(same.ptr()) && absent_items(absent.ptr()) && same_sizes(sizes.ptr()) && same_types(types.ptr());
}

}  // namespace

void bind_staleness(py::module_& m) {
  m.def("unchanged", &unchanged, py::arg("same"), py::arg("absent"), py::arg("sizes"), py::arg("types"),
        "Whether dictionaries hold the same items (dictionary, key, value, ...), lack others (dictionary, key, ...), "
        "are as long (dictionary, length, ...), and objects have the same class (object, class, ...). Flat tuples.");
  m.def("tensor_state", &tensor_state, py::arg("tensors"),
        "What tells whether float32 tensors have changed: address, version, class, dtype, layout, and a hash of every "
        "value of those with at most 4096, of 64 evenly spread ones of the others.");
  m.def("matches", &matches, py::arg("state"), py::arg("tensors"), "Whether tensors are as tensor_state found them.");
}
