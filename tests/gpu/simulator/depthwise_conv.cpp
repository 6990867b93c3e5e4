// Reads one call of the depthwise convolution from standard input, runs it in both orders of threads in memory of
// exactly its size, and writes what came of it: status, parts, output, sums, means.
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "ops/depthwise_conv/cuda.h"
#include "simulator.h"

namespace {

struct Header {  // as tests/gpu/simulator/run.py writes it
  int64_t images, height, width, out_height, out_width, channels, kernel, stride, pad_left, pad_top, dtype, activation;
  int64_t sums;   // whether they and the means are wanted
  int64_t shift;  // elements by which the maps start behind an address of 16 bytes
  int64_t wrong;  // the number of the size that the kernel is told one too large, or -1
};

struct Memory {
  Memory(int64_t size, int64_t before) : size(size), before(before), all(new char[size + before]) {}
  char* data() const { return all.get() + before; }
  int64_t size, before;
  std::unique_ptr<char[]> all;
};

void read(void* to, int64_t size) {
  if (std::fread(to, 1, size, stdin) != static_cast<std::size_t>(size)) std::exit(2);
}

struct Results {
  Memory output, sums, means;
};

int32_t run(mnv3_cuda_depthwise_conv_arguments a, int64_t parts, bool reversed, const Results& to) {
  simulator::reversed = reversed;
  for (const Memory* each : {&to.output, &to.sums, &to.means})
    std::memset(each->data(), reversed ? 0x5a : 0xff, each->size);
  a.output = to.output.data();
  a.sums = to.sums.size ? reinterpret_cast<float*>(to.sums.data()) : nullptr;
  if (const int32_t status = mnv3_cuda_depthwise_conv(&a, nullptr)) return status;
  if (!a.sums) return 0;
  const int64_t pixels = int64_t{a.out_height} * a.out_width;
  return mnv3_cuda_channel_means(a.sums, to.means.data(), a.images, parts, a.channels, pixels, a.dtype, nullptr);
}

}  // namespace

int main() {
  Header h;
  read(&h, sizeof(h));
  const int64_t size = h.dtype == 0 ? 4 : 2, before = h.shift * size;
  Memory input(h.images * h.height * h.width * h.channels * size, before);
  Memory weight(h.kernel * h.kernel * h.channels * size, 0), bias(h.channels * 4, 0);
  for (const Memory* each : {&input, &weight, &bias}) read(each->data(), each->size);
  mnv3_cuda_depthwise_conv_arguments a = {};
  a.input = input.data(), a.weight = weight.data(), a.bias = reinterpret_cast<float*>(bias.data());
  a.images = h.images, a.height = h.height, a.width = h.width, a.out_height = h.out_height, a.out_width = h.out_width;
  a.channels = h.channels, a.kernel = h.kernel, a.stride = h.stride, a.pad_left = h.pad_left, a.pad_top = h.pad_top;
  a.dtype = h.dtype, a.activation = h.activation;
  const int64_t pixels = h.images * h.out_height * h.out_width, all = h.images * h.channels;
  const Memory place(16, before);
  a.output = place.data();
  const int64_t parts = mnv3_cuda_depthwise_conv_parts(&a), kept = h.sums && parts > 0 ? parts : 0;
  int32_t* const sizes[] = {&a.out_height, &a.out_width, &a.height, &a.width, &a.channels};
  if (h.wrong >= 0) ++*sizes[h.wrong];
  Results first = {{pixels * h.channels * size, before}, {all * kept * 4, 0}, {kept ? all * size : 0, 0}};
  Results second = {{pixels * h.channels * size, before}, {all * kept * 4, 0}, {kept ? all * size : 0, 0}};
  int64_t status = run(a, parts, false, first);
  if (status == 0) status = run(a, parts, true, second);
  int64_t differ = 0;
  const auto count = [&](const Memory& one, const Memory& other) {
    for (int64_t i = 0; i < one.size; i++) differ += one.data()[i] != other.data()[i];
  };
  count(first.output, second.output), count(first.sums, second.sums), count(first.means, second.means);
  const int64_t words[] = {status, parts, differ};
  std::fwrite(words, sizeof(words), 1, stdout);
  for (const Memory* each : {&first.output, &first.sums, &first.means})
    std::fwrite(each->data(), 1, each->size, stdout);
}
