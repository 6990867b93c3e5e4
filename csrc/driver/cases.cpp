#include "driver/cases.h"

#include <cstring>

namespace mnv3_fast {

CaseFile::CaseFile(const char* path) : file_(std::fopen(path, "rb")) {
  if (!file_) throw std::runtime_error(std::string("driver: cannot open ") + path);
  const std::vector<char> magic = array<char>(8);
  if (std::memcmp(magic.data(), "MNV3CASE", 8) != 0) throw std::runtime_error("driver: not a file of cases");
  count_ = one<int64_t>();
}

CaseFile::~CaseFile() { std::fclose(file_); }

template <class T>
std::vector<T> CaseFile::array(int64_t count) {
  constexpr int64_t kMost = int64_t{1} << 30;
  if (count < 0 || count > kMost) throw std::runtime_error("driver: the file of cases is damaged");
  std::vector<T> values(static_cast<std::size_t>(count));
  if (std::fread(values.data(), sizeof(T), values.size(), file_) != values.size()) {
    throw std::runtime_error("driver: the file of cases is cut off");
  }
  return values;
}

std::string CaseFile::text() {
  const std::vector<char> characters = array<char>(one<int64_t>());
  return {characters.begin(), characters.end()};
}

std::unique_ptr<AtenTensorOpaque> CaseFile::tensor() {
  const auto dtype = static_cast<int32_t>(one<int64_t>());
  const std::vector<int64_t> sizes = integers(), strides = integers();
  auto result = std::make_unique<AtenTensorOpaque>(dtype, sizes, strides);
  const std::vector<char> values = array<char>(result->bytes());
  if (!values.empty()) std::memcpy(result->data, values.data(), values.size());
  return result;
}

Argument CaseFile::argument(char kind) {
  Argument a;
  a.kind = kind;
  if (kind == 'i') a.integer = one<int64_t>();
  if (kind == 'f') a.real = one<double>();
  if (kind == 'I') a.integers = integers();
  const int64_t count = kind == 'T' ? 1 : kind == 't' || kind == 'L' ? one<int64_t>() : 0;
  for (int64_t i = 0; i < count; i++) a.tensors.push_back(tensor());
  return a;
}

Expected CaseFile::expected() {
  Expected e;
  e.sizes = integers();
  int64_t count = 1;
  for (const int64_t size : e.sizes) count *= size;
  e.theirs = array<float>(count);
  e.exact = array<double>(count);
  e.relative_limit = one<double>();
  e.max_limit = one<double>();
  return e;
}

Case CaseFile::next() {
  Case c;
  c.op = text();
  c.name = text();
  c.planted = one<int64_t>() != 0;
  for (const char kind : text()) c.arguments.push_back(argument(kind));
  c.is_integer = one<int64_t>() != 0;
  c.integer = c.is_integer ? one<int64_t>() : 0;
  const int64_t outputs = one<int64_t>();
  for (int64_t i = 0; i < outputs; i++) c.outputs.push_back(expected());
  return c;
}

}  // namespace mnv3_fast
