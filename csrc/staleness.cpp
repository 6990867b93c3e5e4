// What a fused module was made of, looked at before each call: its attributes, and its tensors with samples of their
// values. Python's objects are read through its C API, so that a check costs microseconds. No reference to one is
// kept here but that of a Watch to its tensors.
#include "staleness.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "api.h"

namespace py = pybind11;

namespace {

int64_t integer(PyObject* number) {
  const int64_t value = PyLong_AsLongLong(number);
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// The getter of torch's class beneath `tensor._version`; to look the name up on each tensor takes longer than to read.
PyGetSetDef* version_getter() {
  const py::object found = py::module_::import("torch").attr("Tensor").attr("_version");
  if (Py_TYPE(found.ptr()) != &PyGetSetDescr_Type) throw py::type_error("torch.Tensor._version is no getter");
  return reinterpret_cast<PyGetSetDescrObject*>(found.ptr())->d_getset;  // static: torch's classes stay
}

int64_t version_of(PyObject* tensor) {
  static const PyGetSetDef* const getter = version_getter();
  PyObject* value = getter->get(tensor, getter->closure);
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

// Tensors [dictionary, key, ...] are the objects that they were.
bool same_tensors(PyObject* sources, const std::vector<PyObject*>& tensors) {
  const auto total = static_cast<Py_ssize_t>(2 * tensors.size());
  for (Py_ssize_t i = 0; i < total; i += 2) {
    fetch_ahead(sources, i, 2, total);
    PyObject* tensor = PyDict_GetItemWithError(PyTuple_GET_ITEM(sources, i), PyTuple_GET_ITEM(sources, i + 1));
    if (!tensor && PyErr_Occurred()) throw py::error_already_set();
    if (tensor != tensors[static_cast<std::size_t>(i / 2)]) return false;
  }
  return true;
}

// Up to Python 3.11 a dictionary has a number that no other content of any dictionary has had (PEP 509). As long as it
// is the same, nothing in the dictionary has changed and no item need be looked up: one cache line instead of a table.
// 3.12 deprecates it (PEP 699).
#if PY_VERSION_HEX < 0x030C0000
constexpr bool kNumbered = true;
uint64_t number_of(PyObject* dictionary) { return reinterpret_cast<PyDictObject*>(dictionary)->ma_version_tag; }
#else
constexpr bool kNumbered = false;
uint64_t number_of(PyObject*) { return 0; }
#endif

// The numbers that dictionaries had when all was found as it should be. They belong to tuples that the caller keeps.
class Numbers {
 public:
  // Of items [dictionary, ...], `step` objects each. In the order of their addresses: neighbours share cache lines.
  void add(PyObject* items, Py_ssize_t step) {
    for (Py_ssize_t i = 0; i < PyTuple_Size(items); i += step) dictionaries_.push_back(PyTuple_GET_ITEM(items, i));
    std::sort(dictionaries_.begin(), dictionaries_.end());
    dictionaries_.erase(std::unique(dictionaries_.begin(), dictionaries_.end()), dictionaries_.end());
  }
  bool same(PyObject* root) const {
    if (numbers_.empty() || number_of(root) != root_) return false;
    for (std::size_t i = 0; i < dictionaries_.size(); i++) {
      if (i + kObjectAhead < dictionaries_.size()) __builtin_prefetch(dictionaries_[i + kObjectAhead]);
      if (number_of(dictionaries_[i]) != numbers_[i]) return false;
    }
    return true;
  }
  void take(PyObject* root) {
    root_ = number_of(root);
    numbers_.clear();
    for (PyObject* dictionary : dictionaries_) numbers_.push_back(number_of(dictionary));
  }

 private:
  std::vector<PyObject*> dictionaries_;
  std::vector<uint64_t> numbers_;
  uint64_t root_ = 0;
};

// Tensors [dictionary, key, ...] where they are kept, against what they were: the same objects with the same versions,
// and a Watch of the kernels' library for the rest. The tensors themselves are kept by that.
class Watch {
 public:
  Watch(const py::tuple& looks, const py::tuple& sources, std::uintptr_t watch)
      : watch_(reinterpret_cast<void*>(watch)) {
    for (Py_ssize_t i = 0; i + 1 < PyTuple_Size(sources.ptr()); i += 2) {
      PyObject* tensor =
          PyDict_GetItemWithError(PyTuple_GET_ITEM(sources.ptr(), i), PyTuple_GET_ITEM(sources.ptr(), i + 1));
      if (!tensor) throw py::key_error("Watch: a tensor is missing");
      tensors_.push_back(tensor);
      versions_.push_back(version_of(tensor));
    }
    if (!kNumbered) return;
    numbers_.add(looks[1].ptr(), 3);
    for (const int i : {2, 3}) numbers_.add(looks[static_cast<std::size_t>(i)].ptr(), 2);
    numbers_.add(sources.ptr(), 2);
  }
  ~Watch() { mnv3_fast_watch_delete(watch_); }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  bool unchanged(const py::tuple& sources) const { return same_values() && same_tensors(sources.ptr(), tensors_); }

  bool all_unchanged(const py::dict& root, const py::tuple& looks, const py::tuple& sources) {
    if (!numbers_.same(root.ptr())) {
      if (!::unchanged(root, looks[0], looks[1], looks[2], looks[3], looks[4])) return false;
      if (!same_tensors(sources.ptr(), tensors_)) return false;
      if (kNumbered) numbers_.take(root.ptr());
    } else if (!same_types(looks[4].ptr())) {
      return false;
    }
    return same_values();
  }

 private:
  bool same_values() const {
    if (!mnv3_fast_watch_unchanged(watch_)) return false;  // first: it fetches what the versions lie in
    for (std::size_t i = 0; i < tensors_.size(); i++) {
      if (version_of(tensors_[i]) != versions_[i]) return false;
    }
    return true;
  }

  void* watch_;
  std::vector<PyObject*> tensors_;
  std::vector<int64_t> versions_;
  Numbers numbers_;
};

}  // namespace

void bind_staleness(py::module_& m) {
  py::class_<Watch>(m, "Watch", "Tensors where modules keep them, and what they were when their weights were packed.")
      .def(py::init<const py::tuple&, const py::tuple&, std::uintptr_t>(), py::arg("looks"), py::arg("sources"),
           py::arg("watch"),
           "looks: the arguments of `unchanged` after the first; sources: (dictionary, name, ...); watch: of "
           "torch.ops.mnv3_fast.watch, which this object frees. The caller keeps the tuples, and passes them again.")
      .def("all_unchanged", &Watch::all_unchanged, py::arg("root"), py::arg("looks"), py::arg("sources"),
           "Both questions in one call: `unchanged(root, *looks)` and `unchanged(sources)`.")
      .def("unchanged", &Watch::unchanged, py::arg("sources"), "Whether the tensors are the same and as they were.");
  m.def("unchanged", &unchanged, py::arg("root"), py::arg("own"), py::arg("same"), py::arg("absent"), py::arg("sizes"),
        py::arg("types"),
        "Whether a dictionary holds the same items (key, value, ...), dictionaries hold the same items (dictionary, "
        "key, value, ...), lack others (dictionary, key, ...), "
        "are as long (dictionary, length, ...), and objects have the same class (object, class, ...). Flat tuples.");
  m.def("versions", &versions, py::arg("tensors"),
        "The version counters of tensors; -1 where inference mode keeps none.");
}
