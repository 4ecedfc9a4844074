// Views of device memory. kernels/ depends on the standard library alone (and on CUDA in cuda/).
#pragma once

#include <cstddef>
#include <cstdint>

namespace shoal {

enum class DType : uint8_t { kBf16, kF32, kI32, kU8 };

constexpr int64_t DTypeBytes(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return 2;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kU8:
      return 1;
  }
  return 0;
}

// A row-major matrix in the memory of one backend; does not own. Row r begins at
// data + r * stride * DTypeBytes(dtype). A vector is one row.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kBf16;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // In elements; at least cols.

  bool empty() const { return data == nullptr || rows == 0; }

  template <typename T>
  T* row(int64_t r) const {
    return static_cast<T*>(data) + r * stride;
  }

  // Rows [first, first + count).
  TensorView Slice(int64_t first, int64_t count) const {
    TensorView view = *this;
    view.data = static_cast<std::byte*>(data) + first * stride * DTypeBytes(dtype);
    view.rows = count;
    return view;
  }

  // Columns [first, first + count).
  TensorView Columns(int64_t first, int64_t count) const {
    TensorView view = *this;
    view.data = static_cast<std::byte*>(data) + first * DTypeBytes(dtype);
    view.cols = count;
    return view;
  }
};

inline TensorView MakeTensor(void* data, DType dtype, int64_t rows, int64_t cols) {
  return {.data = data, .dtype = dtype, .rows = rows, .cols = cols, .stride = cols};
}

// int32 values in the memory of one backend; does not own.
struct IndexView {
  const int32_t* data = nullptr;
  int64_t size = 0;

  int32_t operator[](int64_t i) const { return data[i]; }
};

}  // namespace shoal
