#include "driver/stand_in.h"

#include <atomic>
#include <cstring>
#include <map>
#include <thread>

namespace {

constexpr int32_t kFloat32 = 6, kUint8 = 0;  // torch's own numbers
constexpr int64_t kMargin = 256;             // bytes
constexpr char kFill = '\xff';               // four of them are a NaN

std::atomic<int64_t> live{0};
int thread_limit = 1;

std::map<std::string, mnv3_fast::BoxedKernel>& registry() {
  static std::map<std::string, mnv3_fast::BoxedKernel> kernels;
  return kernels;
}

template <class T>
AOTITorchError give(T value, T* result) {
  *result = value;
  return 0;
}

}  // namespace

struct StableListOpaque {
  std::vector<StableIValue> items;
};

AtenTensorOpaque::AtenTensorOpaque(int32_t tensor_dtype, std::vector<int64_t> tensor_sizes,
                                   std::vector<int64_t> tensor_strides)
    : dtype(tensor_dtype), sizes(std::move(tensor_sizes)), strides(std::move(tensor_strides)) {
  memory.assign(static_cast<std::size_t>(bytes() + 2 * kMargin), kFill);
  data = memory.data() + kMargin;
  live++;
}

AtenTensorOpaque::AtenTensorOpaque(const AtenTensorOpaque& other)
    : AtenTensorOpaque(other.dtype, other.sizes, other.strides) {
  std::memcpy(data, other.data, static_cast<std::size_t>(bytes()));
}

AtenTensorOpaque::~AtenTensorOpaque() { live--; }

int64_t AtenTensorOpaque::numel() const {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  return count;
}

int64_t AtenTensorOpaque::bytes() const {
  if (numel() == 0) return 0;
  int64_t span = 1;
  for (std::size_t i = 0; i < sizes.size(); i++) span += (sizes[i] - 1) * strides[i];
  return span * (dtype == kUint8 ? 1 : 4);
}

bool AtenTensorOpaque::margins_intact() const {
  const char* end = memory.data() + memory.size();
  bool intact = true;
  for (int64_t i = 0; i < kMargin; i++) intact &= memory[static_cast<std::size_t>(i)] == kFill && end[-1 - i] == kFill;
  return intact;
}

namespace mnv3_fast {

BoxedKernel find_kernel(const std::string& name) {
  const auto found = registry().find(name);
  return found == registry().end() ? nullptr : found->second;
}

StableListHandle new_list(std::vector<StableIValue> items) { return new StableListOpaque{std::move(items)}; }

void set_threads(int threads) { thread_limit = threads; }

int64_t live_tensors() { return live; }

}  // namespace mnv3_fast

extern "C" {

int32_t aoti_torch_device_type_cpu() { return 0; }
int32_t aoti_torch_dtype_float32() { return kFloat32; }
int32_t aoti_torch_dtype_uint8() { return kUint8; }
int32_t aoti_torch_layout_strided() { return 0; }

AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle t, void** result) { return give(t->data, result); }
AOTITorchError aoti_torch_get_dim(AtenTensorHandle t, int64_t* result) {
  return give(static_cast<int64_t>(t->sizes.size()), result);
}
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle t, int64_t** result) { return give(t->sizes.data(), result); }
AOTITorchError aoti_torch_get_strides(AtenTensorHandle t, int64_t** result) { return give(t->strides.data(), result); }
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle t, int32_t* result) { return give(t->dtype, result); }
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* result) { return give(0, result); }
AOTITorchError aoti_torch_get_layout(AtenTensorHandle, int32_t* result) { return give(0, result); }
AOTITorchError aoti_torch_get_storage_size(AtenTensorHandle t, int64_t* result) { return give(t->bytes(), result); }
AOTITorchError aoti_torch_get_storage_offset(AtenTensorHandle, int64_t* result) { return give(int64_t{0}, result); }
AOTITorchError aoti_torch_empty_strided(int64_t ndim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t, int32_t, AtenTensorHandle* result) {
  return give(new AtenTensorOpaque(dtype, {sizes, sizes + ndim}, {strides, strides + ndim}), result);
}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle t) {
  delete t;
  return 0;
}

AOTITorchError torch_list_size(StableListHandle list, std::size_t* size) { return give(list->items.size(), size); }
AOTITorchError torch_list_get_item(StableListHandle list, std::size_t index, StableIValue* element) {
  return give(list->items.at(index), element);
}
AOTITorchError torch_delete_list(StableListHandle list) {
  delete list;
  return 0;
}

// A thread for each part: there are as many parts as threads or fewer, except for small tests of the library itself.
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, void (*f)(int64_t, int64_t, void*),
                                  void* context) {
  const int64_t count = end - begin, parts = count < thread_limit ? count : thread_limit;
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < parts; i++) {
    threads.emplace_back(f, begin + count * i / parts, begin + count * (i + 1) / parts, context);
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}
AOTITorchError torch_get_num_threads(uint32_t* threads) { return give(static_cast<uint32_t>(thread_limit), threads); }

AOTITorchError aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t,
                                            TorchLibraryHandle* result) {
  static char library;
  return give(reinterpret_cast<TorchLibraryHandle>(&library), result);
}
AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name, mnv3_fast::BoxedKernel f, uint64_t) {
  registry()[name] = f;
  return 0;
}
}
