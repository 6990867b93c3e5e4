// What a binding needs of torch: tensors, the arguments of a boxed kernel, registration. Built on torch_shim.h alone.
#pragma once
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "torch_shim.h"

namespace mnv3_fast {

[[noreturn]] inline void fail(const char* op, const std::string& message) {
  throw std::runtime_error(std::string(op) + ": " + message);
}

inline void check(AOTITorchError error, const char* what) {
  if (error != 0) throw std::runtime_error(std::string("mnv3_fast: ") + what + " failed");
}

// Owns a handle. A default one stands for an optional tensor that was not given.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(AtenTensorHandle handle);
  Tensor(Tensor&& other) noexcept { *this = std::move(other); }
  Tensor& operator=(Tensor&& other) noexcept;
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() { reset(); }

  explicit operator bool() const { return handle_ != nullptr; }
  int64_t dim() const { return dim_; }
  int64_t size(int64_t i) const { return sizes_[i]; }
  int64_t stride(int64_t i) const { return strides_[i]; }
  int64_t numel() const;
  bool is_dense() const;  // row-major without gaps
  bool is_float32() const { return dtype_ == aoti_torch_dtype_float32(); }
  bool is_uint8() const { return dtype_ == aoti_torch_dtype_uint8(); }
  template <class T = float>
  T* data() const {
    return static_cast<T*>(data_);
  }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }
  std::string shape() const;  // "[1, 16, 112, 112]"

 private:
  void reset();
  AtenTensorHandle handle_ = nullptr;
  void* data_ = nullptr;
  int64_t dim_ = 0;
  const int64_t *sizes_ = nullptr, *strides_ = nullptr;
  int32_t dtype_ = 0;
};

Tensor empty_float32(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides);
// [N, C, H, W] with the strides of every output: (H*W*C, 1, W*C, C).
Tensor empty_map(int64_t n, int64_t c, int64_t h, int64_t w);
Tensor empty_matrix(int64_t rows, int64_t columns);

// The arguments of a boxed kernel. A kernel owns its arguments, so all of them are taken at once, by a pattern of
// T tensor, t optional tensor, i int, f float, I list of ints; nothing leaks if a check throws later.
class Arguments {
 public:
  Arguments(StableIValue* stack, const char* pattern);
  Tensor& tensor(std::size_t i) { return tensors_[i]; }
  int64_t integer(std::size_t i) const { return static_cast<int64_t>(stack_[i]); }
  double real(std::size_t i) const;

 private:
  StableIValue* stack_;
  std::vector<Tensor> tensors_;  // one an argument, empty for those that are no tensor
};

inline void set_result(StableIValue* stack, std::size_t i, Tensor&& tensor) {
  stack[i] = reinterpret_cast<StableIValue>(tensor.release());
}

using BoxedKernel = void (*)(StableIValue*, uint64_t, uint64_t);
// A static object of this type in a binding registers the CPU kernel of torch.ops.mnv3_fast.<name> when the library is
// loaded.
struct RegisterCpu {
  RegisterCpu(const char* name, BoxedKernel kernel);
};

}  // namespace mnv3_fast
