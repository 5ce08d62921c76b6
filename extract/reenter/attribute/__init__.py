"""Attribution patching of heads, MLPs, thoughts and the edges between them, checked against exact patching."""
