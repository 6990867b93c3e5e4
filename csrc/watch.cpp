// torch.ops.mnv3_fast.tensor_state(Tensor[] tensors) -> int: see Handles::state.
// torch.ops.mnv3_fast.watch(Tensor[] tensors) -> int: the address of a Watch for mnv3_fast._C, which frees it.
#include "watch.h"

#include <algorithm>
#include <stdexcept>

#include "api.h"
#include "fingerprint.h"
#include "tensor.h"

namespace mnv3_fast {
namespace {

constexpr int64_t kDims = 4;

struct Layout {
  const void* data;
  int64_t dtype, dims, sizes[kDims], strides[kDims];
};

struct Read {
  Layout layout;
  Array values;  // from the first element to the last
};

// A handle is a pointer to an at::Tensor, which is a pointer to what it is made of: a hint where that lies.
constexpr std::size_t kAhead = 8;
void fetch(AtenTensorHandle tensor) {
  const char* lines = *reinterpret_cast<const char* const*>(tensor);
  for (int line = 0; line < 3; line++) __builtin_prefetch(lines + 64 * line);
}

// Only the first four dimensions of a tensor that has more.
Read read(AtenTensorHandle tensor) {
  Read r = {};
  int32_t dtype = 0;
  int64_t *sizes = nullptr, *strides = nullptr;
  void* data = nullptr;
  check(aoti_torch_get_data_ptr(tensor, &data), "reading a data pointer");
  check(aoti_torch_get_dtype(tensor, &dtype), "reading a dtype");
  check(aoti_torch_get_dim(tensor, &r.layout.dims), "reading a rank");
  check(aoti_torch_get_sizes(tensor, &sizes), "reading sizes");
  check(aoti_torch_get_strides(tensor, &strides), "reading strides");
  r.layout.data = data;
  r.layout.dtype = dtype;
  r.values = {static_cast<const float*>(data), 1};
  bool empty = dtype != aoti_torch_dtype_float32();
  for (int64_t d = 0; d < r.layout.dims && d < kDims; d++) {
    r.layout.sizes[d] = sizes[d];
    r.layout.strides[d] = strides[d];
    empty |= sizes[d] == 0;
    r.values.count += (sizes[d] - 1) * strides[d];
  }
  if (empty) r.values.count = 0;
  return r;
}

}  // namespace

Handles::Handles(StableListHandle list) {
  std::size_t count = 0;
  check(torch_list_size(list, &count), "reading a list");
  for (std::size_t i = 0; i < count; i++) {
    StableIValue element = 0;
    check(torch_list_get_item(list, i, &element), "reading a list");
    handles_.push_back(reinterpret_cast<AtenTensorHandle>(element));
  }
  torch_delete_list(list);
}

Handles::~Handles() {
  for (AtenTensorHandle handle : handles_) aoti_torch_delete_tensor_object(handle);
}

void Handles::check_memory() const {
  for (AtenTensorHandle tensor : handles_) {
    int32_t dtype = 0, device = 0, layout = 0;
    int64_t dims = 0, bytes = 0, offset = 0;
    check(aoti_torch_get_dtype(tensor, &dtype), "reading a dtype");
    check(aoti_torch_get_device_type(tensor, &device), "reading a device");
    check(aoti_torch_get_layout(tensor, &layout), "reading a layout");
    if (dtype != aoti_torch_dtype_float32() || device != aoti_torch_device_type_cpu() ||
        layout != aoti_torch_layout_strided())
      throw std::runtime_error("tensor_state: tensors must be dense float32 on the CPU");
    check(aoti_torch_get_dim(tensor, &dims), "reading a rank");
    if (dims > kDims) throw std::runtime_error("tensor_state: tensors must have at most four dimensions");
    check(aoti_torch_get_storage_size(tensor, &bytes), "reading a storage's size");
    check(aoti_torch_get_storage_offset(tensor, &offset), "reading an offset");
    const int64_t span = read(tensor).values.count;
    if (span > 0 && (offset + span) * 4 > bytes)
      throw std::runtime_error("tensor_state: a tensor has no memory of its size; was its storage freed?");
  }
}

uint64_t Handles::state() const {
  std::vector<Layout> layouts;
  std::vector<Array> arrays;
  layouts.reserve(handles_.size());
  arrays.reserve(handles_.size() + 8);
  for (std::size_t i = 0; i < handles_.size(); i++) {
    if (i + kAhead < handles_.size()) fetch(handles_[i + kAhead]);
    Read found = read(handles_[i]);
    // Storage that is freed or resized has another address, so this is all there is to check on each call.
    if (found.values.count > 0 && !found.values.data)
      throw std::runtime_error("tensor_state: a tensor has no memory; was its storage freed?");
    if (found.values.count <= kWhole) found.layout.data = nullptr;  // all its values are looked at, wherever they lie
    layouts.push_back(found.layout);
    arrays.push_back(found.values);
  }
  // In parts of which every value counts.
  const auto* words = reinterpret_cast<const float*>(layouts.data());
  const auto count = static_cast<int64_t>(layouts.size() * sizeof(Layout) / sizeof(float));
  for (int64_t i = 0; i < count; i += kWhole) arrays.push_back({words + i, std::min(kWhole, count - i)});
  return fingerprint(arrays);
}

Watch::Watch(Handles handles) : handles_(static_cast<Handles&&>(handles)) {
  handles_.check_memory();
  state_ = handles_.state();
}

bool Watch::unchanged() const {
  try {
    return handles_.state() == state_;
  } catch (const std::exception&) {
    return false;  // moved to another device, freed, ...
  }
}

namespace {

void tensor_state(StableIValue* stack, uint64_t, uint64_t) {
  const Handles handles(reinterpret_cast<StableListHandle>(stack[0]));
  handles.check_memory();
  stack[0] = handles.state();
}

void watch(StableIValue* stack, uint64_t, uint64_t) {
  stack[0] = reinterpret_cast<StableIValue>(new Watch(Handles(reinterpret_cast<StableListHandle>(stack[0]))));
}

const RegisterCpu state_registration("tensor_state", tensor_state);
const RegisterCpu watch_registration("watch", watch);

}  // namespace
}  // namespace mnv3_fast

bool mnv3_fast_watch_unchanged(const void* watch) { return static_cast<const mnv3_fast::Watch*>(watch)->unchanged(); }

void mnv3_fast_watch_delete(void* watch) { delete static_cast<mnv3_fast::Watch*>(watch); }
