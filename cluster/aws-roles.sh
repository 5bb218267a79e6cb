#!/usr/bin/env bash
# Makes, once, the two roles that aws.yaml names: aws-roles.sh BUCKET
#   atlas-worker   reads and writes the bucket of the runs, and nothing else
#   atlas-head     the same, and starts and ends workers, to which it may give the role atlas-worker alone
# Ray by itself would give a role to the head only, and workers could not reach the bucket.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
bucket=$1
trust='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}'
storage='{"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetBucketLocation", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"], "Resource": ["arn:aws:s3:::'$bucket'", "arn:aws:s3:::'$bucket'/*"]}'

role() {  # role NAME STATEMENTS
  aws iam create-role --role-name "$1" --assume-role-policy-document "$trust" --query Role.Arn --output text
  aws iam put-role-policy --role-name "$1" --policy-name atlas \
    --policy-document '{"Version": "2012-10-17", "Statement": ['"$2"']}'
  aws iam create-instance-profile --instance-profile-name "$1" --query InstanceProfile.Arn --output text
  aws iam add-role-to-instance-profile --instance-profile-name "$1" --role-name "$1"
}

role atlas-worker "$storage"
worker=$(aws iam get-role --role-name atlas-worker --query Role.Arn --output text)
role atlas-head "$storage"', {"Effect": "Allow", "Action": "ec2:*", "Resource": "*"}, {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "'"$worker"'"}'
