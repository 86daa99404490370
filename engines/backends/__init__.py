"""How an engine is run: one module a backend, each with the same few functions.

why_not(device, precision): why it cannot run here and what to install, or None; imports no torch.
versions(device): the libraries an engine is tied to, by name; imports no torch.
save(source, folder): build into an empty folder; not in eager, which needs no build.
save_onnx(source, folder): the same from a user's ONNX file, where the backend can.
load(request, folder, spec, threads): an Engine, without compiling.
"""
