# The image of all nodes: Ray's own, which has a Ray, a Python and a user that is not root, and this package
# with what it depends on. Nothing to keep up to date here but the version of Ray (with jobs/rayjob.yaml and
# cluster.yaml); the dependencies are those of pyproject.toml.
#
#   docker build --tag REGISTRY/afm-dist:0.1.0 .
#   docker push REGISTRY/afm-dist:0.1.0
#
# For a cluster without GPUs, at about a third of the size, name the index of PyTorch's CPU wheels:
#   docker build --build-arg TORCH_INDEX=URL --tag REGISTRY/afm-dist:0.1.0 .
FROM rayproject/ray:2.60.0-py311-cpu

# PyTorch brings CUDA's libraries along; the node's driver is the runtime's to lend.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Made by the image's own user: the folder that WORKDIR would make is root's.
RUN mkdir -p /home/ray/afm-dist
WORKDIR /home/ray/afm-dist
COPY --chown=ray:users pyproject.toml README.md LICENSE ./
COPY --chown=ray:users afm_dist ./afm_dist
COPY --chown=ray:users data_prep ./data_prep
COPY --chown=ray:users jobs ./jobs

ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} .
