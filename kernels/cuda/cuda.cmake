# The CUDA backend, by nvcc, in place of its stub.  One binary serves sm_80, sm_90 and sm_100, and
# newer GPUs through PTX; -DCMAKE_CUDA_ARCHITECTURES=90 builds for one alone, which is quicker.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 100-virtual)
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
if(NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER ${NVCC})
endif()
enable_language(CUDA)
string(REPLACE "-DNDEBUG" "" CMAKE_CUDA_FLAGS_RELEASE "${CMAKE_CUDA_FLAGS_RELEASE}")
find_package(CUDAToolkit REQUIRED)

# Without NCCL the ranks of several GPUs exchange through the host.
find_path(NCCL_INCLUDE nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR} ${CUDAToolkit_LIBRARY_ROOT}/lib)
if(NOT NCCL_INCLUDE OR NOT NCCL_LIBRARY)
  message(STATUS "NCCL is not here: GPUs will exchange through the host")
  unset(NCCL_LIBRARY CACHE)
endif()

# Files named *_wgmma.cu are for Hopper alone, whose warp-group products no other GPU has: they are
# compiled for sm_90a only, and called only there.
# The standard is named here because CMake 3.25 knows none after C++17 for nvcc.
# A register that does not fit is an error: kernels are shaped so that none is spilled.
set(cuda_options $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 -Werror=all-warnings
  -Xptxas=-warn-spills -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas>)
set(cuda_includes $<$<COMPILE_LANGUAGE:CUDA>:${CMAKE_SOURCE_DIR}/kernels/cuda/ptx>)
function(cuda_add_backend library)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
  file(GLOB hopper CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*_wgmma.cu)
  list(REMOVE_ITEM sources ${hopper})
  add_library(${library}_hopper OBJECT ${hopper})
  set_target_properties(${library}_hopper PROPERTIES CUDA_ARCHITECTURES 90a-real)
  target_include_directories(${library}_hopper PRIVATE ${cuda_includes})
  target_compile_options(${library}_hopper PRIVATE ${cuda_options})
  target_link_libraries(${library}_hopper PRIVATE winnow_flags CUDA::cudart)
  target_sources(${library} PRIVATE ${sources} $<TARGET_OBJECTS:${library}_hopper>)
  target_include_directories(${library} PRIVATE ${cuda_includes})
  target_compile_options(${library} PRIVATE ${cuda_options})
  target_link_libraries(${library} PUBLIC CUDA::cudart CUDA::cublasLt)
endfunction()
