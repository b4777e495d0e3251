"""The bodies of other services' endpoints: what they hold, what they mean in ours, and how they are answered.

Law: a dialect is translated into the body of ``/v1/embeddings`` and read by the one parser there, so limits,
refusals and prompts are the same on every endpoint. What is blamed is then named as the client named it.
"""
