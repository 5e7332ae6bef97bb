output "vpc_id" {
  description = "Id of the VPC."
  value       = aws_vpc.this.id
}

output "vpc_cidr_block" {
  description = "Addresses of the VPC."
  value       = aws_vpc.this.cidr_block
}

output "private_subnets" {
  description = "Ids of the private subnets, one in each zone."
  value       = aws_subnet.private[*].id
}

output "public_subnets" {
  description = "Ids of the public subnets, one in each zone."
  value       = aws_subnet.public[*].id
}
