// What a fused module was made of, looked at before each call: its attributes, and its tensors with samples of their
// values. Python's objects are read through its C API, so that a check costs microseconds. No reference to one is
// kept here but that of a Watch to its tensors.
#include "staleness.h"

#include <cstdint>
#include <string>
#include <vector>

#include "api.h"

namespace py = pybind11;

namespace {

PyObject* interned(const char* name) {
  PyObject* text = PyUnicode_InternFromString(name);
  if (!text) throw py::error_already_set();
  return text;  // kept for the life of the process
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

py::bytes versions(const py::list& tensors) {
  std::string bytes;
  for (const py::handle tensor : tensors) {
    const int64_t version = version_of(tensor.ptr());
    bytes.append(reinterpret_cast<const char*>(&version), sizeof version);
  }
  return py::bytes(bytes);
}

// The objects that are looked at lie all over the heap, and after a pass of the network in no cache: they are fetched
// side by side, some items ahead. Two steps, since a dictionary's table is found through the dictionary.
constexpr Py_ssize_t kObjectAhead = 48, kTableAhead = 24;
constexpr int kTableLines = 10;

void fetch_ahead(PyObject* items, Py_ssize_t i, Py_ssize_t step, Py_ssize_t size) {
  const Py_ssize_t object = i + kObjectAhead * step, table = i + kTableAhead * step;
  if (object < size) __builtin_prefetch(PyTuple_GET_ITEM(items, object));
  if (table >= size) return;
  PyObject* dictionary = PyTuple_GET_ITEM(items, table);
  if (dictionary == PyTuple_GET_ITEM(items, table - step) || !PyDict_CheckExact(dictionary)) return;
  const auto* found = reinterpret_cast<PyDictObject*>(dictionary);
  const auto* lines = reinterpret_cast<const char*>(found->ma_values ? static_cast<const void*>(found->ma_values)
                                                                     : static_cast<const void*>(found->ma_keys));
  for (int line = 0; line < kTableLines; line++) __builtin_prefetch(lines + 64 * line);
}

// Items [dictionary, key, expected, ...] are there, the same objects as they were.
bool same_items(PyObject* items) {
  const Py_ssize_t size = PyTuple_Size(items);
  for (Py_ssize_t i = 0; i + 2 < size; i += 3) {
    fetch_ahead(items, i, 3, size);
    PyObject* found = PyDict_GetItemWithError(PyTuple_GET_ITEM(items, i), PyTuple_GET_ITEM(items, i + 1));
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    if (found != PyTuple_GET_ITEM(items, i + 2)) return false;
  }
  return true;
}

// Items [key, expected, ...] of one dictionary are there, the same objects as they were.
bool own_items(PyObject* dictionary, PyObject* items) {
  for (Py_ssize_t i = 0; i + 1 < PyTuple_Size(items); i += 2) {
    PyObject* found = PyDict_GetItemWithError(dictionary, PyTuple_GET_ITEM(items, i));
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    if (found != PyTuple_GET_ITEM(items, i + 1)) return false;
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
  const Py_ssize_t total = PyTuple_Size(items);
  for (Py_ssize_t i = 0; i + 1 < total; i += 2) {
    if (i + 2 * kTableAhead < total) __builtin_prefetch(PyTuple_GET_ITEM(items, i + 2 * kTableAhead));
    const Py_ssize_t size = PyDict_Size(PyTuple_GET_ITEM(items, i));
    if (size < 0) throw py::error_already_set();
    if (size != integer(PyTuple_GET_ITEM(items, i + 1))) return false;
  }
  return true;
}

// Objects [object, class, ...] are still of exactly that class.
bool same_types(PyObject* items) {
  const Py_ssize_t total = PyTuple_Size(items);
  for (Py_ssize_t i = 0; i + 1 < total; i += 2) {
    if (i + 2 * kTableAhead < total) __builtin_prefetch(PyTuple_GET_ITEM(items, i + 2 * kTableAhead));
    if (reinterpret_cast<PyObject*>(Py_TYPE(PyTuple_GET_ITEM(items, i))) != PyTuple_GET_ITEM(items, i + 1))
      return false;
  }
  return true;
}

bool unchanged(const py::dict& root, const py::tuple& own, const py::tuple& same, const py::tuple& absent,
               const py::tuple& sizes, const py::tuple& types) {
  return own_items(root.ptr(), own.ptr()) && same_items(same.ptr()) && absent_items(absent.ptr()) &&
         same_sizes(sizes.ptr()) && same_types(types.ptr());
}

// Tensors [dictionary, key, ...] where they are kept, against what they were: the same objects with the same versions,
// and a Watch of the kernels' library for the rest. The tensors themselves are kept by that.
class Watch {
 public:
  Watch(const py::tuple& sources, std::uintptr_t watch) : watch_(reinterpret_cast<void*>(watch)) {
    for (Py_ssize_t i = 0; i + 1 < PyTuple_Size(sources.ptr()); i += 2) {
      PyObject* tensor =
          PyDict_GetItemWithError(PyTuple_GET_ITEM(sources.ptr(), i), PyTuple_GET_ITEM(sources.ptr(), i + 1));
      if (!tensor) throw py::key_error("Watch: a tensor is missing");
      tensors_.push_back(tensor);
      versions_.push_back(version_of(tensor));
    }
  }
  ~Watch() { mnv3_fast_watch_delete(watch_); }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  bool unchanged(const py::tuple& sources) const {
    if (!mnv3_fast_watch_unchanged(watch_)) return false;  // first: it fetches what the versions lie in
    const auto total = static_cast<Py_ssize_t>(2 * tensors_.size());
    for (Py_ssize_t i = 0; i < total; i += 2) {
      fetch_ahead(sources.ptr(), i, 2, total);
      PyObject* tensor =
          PyDict_GetItemWithError(PyTuple_GET_ITEM(sources.ptr(), i), PyTuple_GET_ITEM(sources.ptr(), i + 1));
      if (!tensor && PyErr_Occurred()) throw py::error_already_set();
      const auto index = static_cast<std::size_t>(i / 2);
      if (tensor != tensors_[index] || version_of(tensor) != versions_[index]) return false;
    }
    return true;
  }

 private:
  void* watch_;
  std::vector<PyObject*> tensors_;
  std::vector<int64_t> versions_;
};

}  // namespace

void bind_staleness(py::module_& m) {
  py::class_<Watch>(m, "Watch", "Tensors where modules keep them, and what they were when their weights were packed.")
      .def(py::init<const py::tuple&, std::uintptr_t>(), py::arg("sources"), py::arg("watch"),
           "sources: (dictionary, name, ...); watch: of torch.ops.mnv3_fast.watch, which this object frees.")
      .def("unchanged", &Watch::unchanged, py::arg("sources"), "Whether the tensors are the same and as they were.");
  m.def("unchanged", &unchanged, py::arg("root"), py::arg("own"), py::arg("same"), py::arg("absent"), py::arg("sizes"),
        py::arg("types"),
        "Whether a dictionary holds the same items (key, value, ...), dictionaries hold the same items (dictionary, "
        "key, value, ...), lack others (dictionary, key, ...), "
        "are as long (dictionary, length, ...), and objects have the same class (object, class, ...). Flat tuples.");
  m.def("versions", &versions, py::arg("tensors"),
        "The version counters of tensors; -1 where inference mode keeps none.");
}
