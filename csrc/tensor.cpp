#include "tensor.h"

#include <cstring>
#include <exception>

namespace mnv3_fast {

// Delegates, so that the destructor frees the handle if what follows throws.
Tensor::Tensor(AtenTensorHandle handle) : Tensor() {
  handle_ = handle;
  int32_t device = 0, layout = 0;
  int64_t *sizes = nullptr, *strides = nullptr;
  check(aoti_torch_get_device_type(handle, &device), "reading a device");
  check(aoti_torch_get_layout(handle, &layout), "reading a layout");
  if (device != aoti_torch_device_type_cpu() || layout != aoti_torch_layout_strided()) {
    throw std::runtime_error("mnv3_fast: this kernel takes dense CPU tensors only");
  }
  check(aoti_torch_get_dtype(handle, &dtype_), "reading a dtype");
  check(aoti_torch_get_dim(handle, &dim_), "reading a rank");
  check(aoti_torch_get_sizes(handle, &sizes), "reading sizes");
  check(aoti_torch_get_strides(handle, &strides), "reading strides");
  check(aoti_torch_get_data_ptr(handle, &data_), "reading a data pointer");
  sizes_ = sizes;
  strides_ = strides;
  if (!data_ && numel() > 0) throw std::runtime_error("mnv3_fast: a tensor of shape " + shape() + " has no memory");
}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  if (this == &other) return *this;
  reset();
  handle_ = std::exchange(other.handle_, nullptr);
  data_ = other.data_;
  dim_ = other.dim_;
  sizes_ = other.sizes_;
  strides_ = other.strides_;
  dtype_ = other.dtype_;
  return *this;
}

void Tensor::reset() {
  if (handle_) aoti_torch_delete_tensor_object(std::exchange(handle_, nullptr));
}

int64_t Tensor::numel() const {
  int64_t n = 1;
  for (int64_t i = 0; i < dim_; i++) n *= sizes_[i];
  return n;
}

bool Tensor::is_dense() const {
  int64_t expected = 1;
  for (int64_t i = dim_ - 1; i >= 0; i--) {
    if (sizes_[i] != 1 && strides_[i] != expected) return false;
    expected *= sizes_[i];
  }
  return true;
}

std::string Tensor::shape() const {
  std::string text = "[";
  for (int64_t i = 0; i < dim_; i++) text += (i ? ", " : "") + std::to_string(sizes_[i]);
  return text + "]";
}

Tensor empty_float32(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  AtenTensorHandle handle = nullptr;
  check(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                 aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, &handle),
        "allocating an output");
  return Tensor(handle);
}

Tensor empty_map(int64_t n, int64_t c, int64_t h, int64_t w) {
  return empty_float32({n, c, h, w}, {h * w * c, 1, w * c, c});
}

Tensor empty_matrix(int64_t rows, int64_t columns) { return empty_float32({rows, columns}, {columns, 1}); }

namespace {

AtenTensorHandle take_optional(StableIValue value) {
  // Encoding of an optional for extensions of version 2.10: null, or a StableIValue on the heap that the receiver
  // frees.
  StableIValue* boxed = reinterpret_cast<StableIValue*>(value);
  if (!boxed) return nullptr;
  const AtenTensorHandle handle = reinterpret_cast<AtenTensorHandle>(*boxed);
  delete boxed;
  return handle;
}

}  // namespace

Arguments::Arguments(StableIValue* stack, const char* pattern) : stack_(stack) {
  const std::size_t count = std::strlen(pattern);
  std::vector<AtenTensorHandle> handles(count, nullptr);
  for (std::size_t i = 0; i < count; i++) {
    if (pattern[i] == 'T') handles[i] = reinterpret_cast<AtenTensorHandle>(stack[i]);
    if (pattern[i] == 't') handles[i] = take_optional(stack[i]);
    if (pattern[i] == 'I') torch_delete_list(reinterpret_cast<StableListHandle>(stack[i]));
  }
  tensors_.resize(count);
  std::exception_ptr error;
  for (std::size_t i = 0; i < count; i++) {
    if (!handles[i]) continue;
    try {
      tensors_[i] = Tensor(handles[i]);
    } catch (...) {
      error = std::current_exception();  // go on: the other handles are ours to free
    }
  }
  if (error) std::rethrow_exception(error);
}

double Arguments::real(std::size_t i) const {
  double value;
  std::memcpy(&value, &stack_[i], 8);
  return value;
}

RegisterCpu::RegisterCpu(const char* name, BoxedKernel kernel) {
  static TorchLibraryHandle library = nullptr;
  if (!library)
    check(aoti_torch_library_init_impl("mnv3_fast", "CPU", __FILE__, __LINE__, &library), "registering kernels");
  constexpr uint64_t kTorch210 = (uint64_t{2} << 56) | (uint64_t{10} << 48);
  check(torch_library_impl(library, name, kernel, kTorch210), "registering a kernel");
}

}  // namespace mnv3_fast
